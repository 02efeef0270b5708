//! The laboratory itself, without a guest: it answers, and it sees what leaves the host.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::lab::{A, HOST_MAC, HOST_V4, Kind, Lab, ROUTER_MAC, ROUTER_V4};
use pandastack_tests::wait_until;

use crate::frames;
use crate::guest::{self, Probe};

/// A process that resolves a name with the lab's resolver and fetches something from there.
const FETCH: &str = r#"
import socket, struct, sys, urllib.request
name = sys.argv[1]
labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
udp.sendto(question, ("192.0.2.53", 53))
answer = udp.recv(1500)
address = socket.inet_ntoa(answer[-4:])
request = urllib.request.Request(f"http://{address}/some/path", headers={"Host": name})
print(address, urllib.request.urlopen(request, timeout=5).read().decode().strip())
"#;

#[test]
fn a_process_on_the_host_resolves_and_fetches() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    lab.zone().point("a.lab", &["203.0.113.10"]);
    let output = Command::new("python3").args(["-c", FETCH, "a.lab"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        text.trim(),
        "203.0.113.10 address=203.0.113.10 host=a.lab method=GET target=/some/path received=0"
    );
    let seen = lab.seen()?;
    assert_eq!(seen.names(), ["a.lab"]);
    assert_eq!(seen.queries[0].kind, A);
    let connections = seen.connections_to("203.0.113.10");
    assert!(connections.len() == 1 && connections[0].said.starts_with(b"GET /some/path HTTP/1.1"));
    assert_eq!(seen.packets_to("203.0.113.10").len(), 1);
    assert_eq!(seen.packets.len(), 2, "{:?}", seen.packets);
    lab.forget()?;
    assert!(lab.seen()?.packets.is_empty());
    Ok(())
}

#[test]
fn whatever_leaves_the_host_is_seen_whoever_it_is_for() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let v4 = UdpSocket::bind("0.0.0.0:0")?;
    let v6 = UdpSocket::bind("[::]:0")?;
    v4.send_to(b"secret-by-dns", "8.8.8.8:53")?;
    v4.send_to(b"secret-to-metadata", "169.254.169.254:4000")?;
    v4.send_to(b"secret-to-private", "10.0.0.5:4000")?;
    v4.send_to(b"secret-to-neighbour", "192.0.2.140:4000")?;
    v6.send_to(b"secret-by-six", "[2606:4700::1111]:4000")?;
    let ping = Command::new("ping").args(["-c1", "-W1", "-p", "7365", "198.51.100.9"]).output();
    let seen = lab.seen()?;
    for (to, text) in [
        ("8.8.8.8", "secret-by-dns"),
        ("169.254.169.254", "secret-to-metadata"),
        ("10.0.0.5", "secret-to-private"),
        ("192.0.2.140", "secret-to-neighbour"),
        ("2606:4700::1111", "secret-by-six"),
    ] {
        let packets: Vec<_> =
            seen.packets_to(to).into_iter().filter(|p| p.kind == Kind::Udp).collect();
        ensure!(packets.len() == 1, "{to}: {packets:?}");
        ensure!(packets[0].bytes.ends_with(text.as_bytes()) && seen.contains(text), "{to}");
    }
    // A resolver that nobody should ask notes even what is no question.
    assert_eq!(seen.datagrams.len(), 1);
    if ping.is_ok_and(|output| output.status.success()) {
        assert_eq!(seen.packets_to("198.51.100.9")[0].kind, Kind::Icmp);
    }
    Ok(())
}

#[test]
fn every_address_answers_as_itself() -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    for (address, from) in [
        ("169.254.169.254:22", "169.254.169.254"),
        ("100.100.100.200:22", "100.100.100.200"),
        ("10.0.0.5:22", "10.0.0.5"),
        ("192.0.2.140:22", "192.0.2.140"),
        ("[fd00:ec2::254]:22", "fd00:ec2::254"),
        ("[2001:db8:1::10]:22", "2001:db8:1::10"),
    ] {
        let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"heard\n")?;
        let hello = format!("hello from {from}\n");
        let mut text = vec![0; hello.len() + 6];
        stream.read_exact(&mut text)?;
        assert_eq!(String::from_utf8(text)?, format!("{hello}heard\n"));
        drop(stream);
        let over = || lab.seen().is_ok_and(|s| s.connections_to(from).iter().all(|c| c.closed));
        assert!(wait_until(Duration::from_secs(5), over));
        assert_eq!(lab.seen()?.connections_to(from)[0].said, b"heard\n");
    }
    for address in ["203.0.113.10:123", "[2001:db8:1::10]:123"] {
        let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"again")?;
        let mut text = [0; 5];
        socket.recv(&mut text).with_context(|| address.to_owned())?;
        assert_eq!(&text, b"again");
    }
    Ok(())
}

#[test]
fn what_guests_attempt_works_where_nothing_hinders_it() -> Result<()> {
    let Some(mut lab) = Lab::start()? else { return Ok(()) };
    lab.begin_tls(&["a.lab"])?;
    lab.zone().point("a.lab", &["203.0.113.10"]);
    // An echo request to the router, as a frame.
    let frame = frames::echo_request(HOST_MAC, ROUTER_MAC, HOST_V4, ROUTER_V4, b"by hand");
    let probes = [
        Probe::resolve("localhost"),
        Probe::dns_at("192.0.2.53", 53, "a.lab", A),
        Probe::dns_at("192.0.2.53", 53, "a.lab", A).with("tcp", true),
        Probe::http("203.0.113.10", "a.lab", "/x"),
        Probe::tls("203.0.113.10", "a.lab"),
        Probe::tls("203.0.113.10", ""),
        Probe::tcp("203.0.113.10", 5000, b"said").with("until", "said"),
        Probe::tcp("2001:db8:1::10", 5000, b"said").with("until", "said"),
        Probe::udp("203.0.113.10", 123, b"said"),
        Probe::udp("2001:db8:1::10", 123, b"said"),
        Probe::ping("203.0.113.10", b"body"),
        Probe::ping("2001:db8:1::10", b"body"),
        Probe::frame(&frame, b"by hand"),
    ];
    let outcomes = guest::here(&probes)?;
    for outcome in &outcomes {
        assert!(outcome.ok, "{outcome:?}");
    }
    let texts: Vec<_> = outcomes.iter().map(|outcome| outcome.text.trim()).collect();
    assert_eq!(texts[1..3], ["203.0.113.10"; 2]);
    assert!(texts[3].contains("host=a.lab") && texts[4].contains("sni=a.lab"), "{texts:?}");
    assert!(texts[5].contains("sni=None"), "{texts:?}");
    assert_eq!(texts[6], "hello from 203.0.113.10\nsaid");
    assert_eq!(lab.seen()?.names(), ["a.lab"]);
    // And what nobody answers does not work.
    let outcomes = guest::here(&[
        Probe::udp("203.0.113.77", 123, b"said").with("timeout", 1),
        Probe::tcp("203.0.113.77", 77, b"said"),
        Probe::dns_at("192.0.2.53", 53, "b.lab", A),
    ])?;
    assert!(!outcomes.iter().any(|outcome| outcome.ok), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_thread_without_its_lab_is_back_where_it_was() -> Result<()> {
    let namespace = || std::fs::read_link("/proc/thread-self/ns/net");
    let before = namespace()?;
    let Some(lab) = Lab::start()? else { return Ok(()) };
    assert_ne!(namespace()?, before);
    drop(lab);
    assert_eq!(namespace()?, before);
    Ok(())
}

#[test]
fn tls_is_real_and_what_was_said_in_it_is_kept() -> Result<()> {
    let Some(mut lab) = Lab::start()? else { return Ok(()) };
    let certificate = lab.begin_tls(&["a.lab", "*.b.lab"])?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &certificate)?;
    let fetch = "import socket, ssl, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[1])\n\
        s = c.wrap_socket(socket.create_connection(('203.0.113.10', 443), 5), server_hostname='a.lab')\n\
        s.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')\n\
        print(s.recv(4096).decode())";
    let output = Command::new("python3").args(["-c", fetch]).arg(file.path()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("tls sni=a.lab"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let seen = lab.seen()?;
    let said = &seen.connections_to("203.0.113.10")[0].said;
    // A handshake's record, with the name in it.
    assert!(said.starts_with(&[22, 3, 1]) && said.windows(5).any(|w| w == b"a.lab"));
    Ok(())
}
