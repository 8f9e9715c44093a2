"""Nobody at the target's address: clients are told so at once, and it is tried again each time."""

import re

import pytest

from harness import DEADLINE, Proxy, echo_once, eventually, expect_reset, host_port, parallel
from namespaces import own_files


def test_refused_by_the_target_resets_the_client_and_is_counted_and_logged(lab):
    target = lab.unlistened()
    proxy = lab.proxy(target)
    for _ in range(3):
        lab.expect_refusal(proxy)
    proxy.await_closed(target_refused=3)
    metrics = proxy.scrape()
    assert metrics.value("tcp_proxy_target_connect_failures_total") == 3
    assert metrics.value("tcp_proxy_target_connect_attempts_total") == 3
    assert metrics.value("inbound_connection_count") == 3
    assert metrics.value("outbound_connection_count") == 0
    assert proxy.await_line(re.escape(host_port(target.address)) + ".*refused|refused.*"
                            + re.escape(host_port(target.address)))


def test_target_that_comes_up_later_serves_without_a_restart(lab):
    target = lab.unlistened()
    proxy = lab.proxy(target)
    lab.expect_refusal(proxy)
    target.socket.listen(16)
    client, server = lab.pair(proxy, target)
    client.sendall(b"at last")
    assert server.recv(16) == b"at last"


def test_bytes_sent_before_the_refusal_do_not_turn_the_reset_into_a_fin(lab):
    proxy = lab.proxy(lab.unlistened())
    for _ in range(20):
        try:
            client = lab.client(proxy)
            client.sendall(b"hello")
        except ConnectionError:
            continue  # reset already
        expect_reset(client)


def test_a_thousand_refusals_leak_nothing(lab):
    proxy = lab.proxy(lab.unlistened())
    for _ in range(50):
        parallel(*[lambda: lab.expect_refusal(proxy)] * 20)
    proxy.await_closed(target_refused=1000)
    proxy.check_descriptors_given_back()
    proxy.assert_idle()


# --- names: in a mount namespace of its own the proxy sees our /etc/hosts, and no DNS ------------


@pytest.fixture
def hosts(folder):
    path = folder / "hosts"
    path.write_text("127.0.0.1 localhost\n")
    (folder / "nsswitch.conf").write_text("hosts: files\n")
    return path


def with_hosts(lab, target: str) -> Proxy:
    return lab.proxy(target, prefix=own_files({
        "/etc/hosts": lab.folder / "hosts", "/etc/nsswitch.conf": lab.folder / "nsswitch.conf",
    }))


def test_name_that_does_not_resolve_warns_at_start_and_is_retried_per_connection(lab, hosts):
    echo = lab.echo()
    name = "database.example"
    proxy = with_hosts(lab, f"{name}:{echo.address[1]}")
    proxy.await_line(re.escape(name))
    lab.expect_refusal(proxy)
    lab.expect_refusal(proxy)
    proxy.await_closed(target_unresolved=2)
    assert proxy.value("tcp_proxy_target_connect_failures_total") >= 2

    with hosts.open("a") as file:  # the same inode: a bind mount shows no renamed file
        file.write(f"127.0.0.1 {name}\n")

    def served() -> bool:
        client = lab.client(proxy)
        try:
            echo_once(client)
        except OSError:
            return False  # a short memory of the failure is allowed
        return True

    eventually(served, "the name to be looked up again")


@pytest.mark.parametrize("alive", ["127.0.0.2", "127.0.0.3", "::1"])
def test_every_address_of_a_name_is_tried_in_turn(lab, hosts, alive):
    echo = lab.echo((alive, 0))
    hosts.write_text("127.0.0.2 many.example\n127.0.0.3 many.example\n::1 many.example\n")
    proxy = with_hosts(lab, f"many.example:{echo.address[1]}")
    for _ in range(5):
        echo_once(lab.client(proxy))
    assert proxy.scrape().closed().get("target-refused", 0) == 0


def test_name_whose_addresses_all_refuse_resets_the_client(lab, hosts):
    target = lab.unlistened()
    hosts.write_text("127.0.0.2 many.example\n127.0.0.3 many.example\n")
    proxy = with_hosts(lab, f"many.example:{target.address[1]}")
    lab.expect_refusal(proxy, DEADLINE)
    proxy.await_closed(target_refused=1)
