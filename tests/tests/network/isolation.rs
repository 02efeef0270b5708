//! T36: the host, its API, its networks and other sandboxes are out of reach under every policy, and
//! frames that pretend to be somebody else's go nowhere.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::lab::{HOST_PUBLIC, HOST_V4, HOST_V6};
use pandastack_tests::{Options, wait_until};
use serde_json::json;

use crate::frames;
use crate::guest::{self, Probe, hex};
use crate::stage::{SITE_A, Stage, everything};

/// The addresses of pandastack_proto::network, which every guest has.
const GUEST: ([u8; 6], Ipv4Addr) =
    ([2, 0x50, 0x41, 0x4e, 0x44, 0x41], Ipv4Addr::new(198, 18, 0, 2));
const GATEWAY: ([u8; 6], Ipv4Addr) =
    ([2, 0x50, 0x41, 0x4e, 0x47, 0x57], Ipv4Addr::new(198, 18, 0, 1));

fn insolent() -> serde_json::Value {
    let mut policy = everything();
    let allow = policy["allow"].as_array_mut().expect("a list");
    for cidr in ["10.0.0.0/8", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7", "192.0.2.128/26"] {
        allow.push(json!({ "cidr": cidr, "ports": ["1-65535", "1-65535/udp"] }));
    }
    policy
}

#[test]
fn the_host_is_out_of_reach() -> Result<()> {
    let args = ["--allow-private"];
    let Some(stage) = Stage::with(&args, Options::default())? else { return Ok(()) };
    let api: u16 = stage.server.url().rsplit(':').next().unwrap_or_default().parse()?;
    // Services of the host, on all of its addresses.
    let service = TcpListener::bind("[::]:0")?;
    service.set_nonblocking(true)?;
    let port = service.local_addr()?.port();
    let own = [HOST_V4.to_string(), HOST_PUBLIC.to_string(), HOST_V6.to_string()];
    let hex_v4 = |a: Ipv4Addr| {
        a.octets()
            .chunks(2)
            .map(|c| format!("{:x}", u16::from_be_bytes([c[0], c[1]])))
            .collect::<Vec<_>>()
            .join(":")
    };
    let mut addresses: Vec<String> = own.to_vec();
    addresses.extend([HOST_V4, HOST_PUBLIC].map(|a| format!("::ffff:{a}")));
    addresses.extend([HOST_V4, HOST_PUBLIC].map(|a| format!("64:ff9b::{a}")));
    addresses.extend([HOST_V4, HOST_PUBLIC].map(|a| format!("2002:{}::", hex_v4(a))));
    // What a cloud gives a host besides: no interface has it.
    let routed = ["2001:db8:78::5", "203.0.113.200"];
    let public = HOST_PUBLIC.to_string();
    local_route(&["-6", "route", "add", "local", "2001:db8:78::/64", "dev", "lo"])?;
    local_route(&["route", "add", "local", routed[1], "dev", "lo", "src", &public])?;
    addresses.extend(routed.map(str::to_owned));
    let gateways = ["198.18.0.1", "fd50:616e:6461::1", "198.18.0.3", "fe80::1%1"];
    addresses.extend(gateways.map(str::to_owned));
    addresses.extend(["0.0.0.0", "::"].map(str::to_owned));
    let mut probes = Vec::new();
    for address in &addresses {
        for port in [port, api] {
            probes.push(Probe::http(address, "localhost", "/healthz").with("timeout", 3));
            probes.push(
                Probe::tcp(address, port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    .with("timeout", 3),
            );
        }
    }
    for port in [1_u16, 22, 53, 67, 80, 443, 853, 3128, 7878, 8080] {
        let text = b"GET / HTTP/1.1\r\nHost: a.lab\r\n\r\n";
        probes.push(Probe::tcp("198.18.0.1", port, text).with("timeout", 3));
    }
    let sandbox = stage.plain()?;
    for policy in [json!("none"), json!({ "allow": [{ "host": "*" }] }), insolent()] {
        stage.set(&sandbox, &policy)?;
        stage.closed(&sandbox, &probes)?;
        ensure!(service.accept().is_err(), "somebody came to the host under {policy}");
    }
    stage.explains(&sandbox, &own[0], "the host's own")?;
    // A name that leads to the host leads nowhere.
    stage.lab.zone().point("home.lab", &[&own[0], &own[1], &own[2]]);
    stage.refused(&sandbox, &[Probe::resolve("home.lab")])?;
    // The host reaches its own service, and the guest everything else.
    let outcomes = guest::here(&[Probe::tcp(&own[0], port, b"x").with("timeout", 1)])?;
    ensure!(outcomes[0].value["connected"] == true && service.accept().is_ok());
    stage
        .open(&sandbox, &[Probe::http(SITE_A, "a.lab", "/"), Probe::http("10.0.0.5", "x", "/")])?;
    Ok(())
}

/// Changes the routes of the namespace that this test is in.
fn local_route(arguments: &[&str]) -> Result<()> {
    let status = std::process::Command::new("ip").args(arguments).status()?;
    ensure!(status.success(), "ip {arguments:?}");
    Ok(())
}

#[test]
fn another_sandbox_is_out_of_reach() -> Result<()> {
    let args = ["--allow-private"];
    let Some(stage) = Stage::with(&args, Options::default())? else { return Ok(()) };
    let (one, other) = (stage.sandbox(&insolent())?, stage.sandbox(&insolent())?);
    let serve = "import http.server, socketserver, socket\n\
        class S(socketserver.ThreadingTCPServer):\n    address_family = socket.AF_INET6\n\
        S(('::', 7000), http.server.SimpleHTTPRequestHandler).serve_forever()";
    one.write("/root/serve.py", serve.as_bytes())?;
    one.output("python3 /root/serve.py >/dev/null 2>&1 </dev/null &")?;
    let own = ["198.18.0.2", "fd50:616e:6461::2"];
    let ask = |address: &str| {
        Probe::tcp(address, 7000, b"GET / HTTP/1.0\r\n\r\n").with("until", "HTTP/1.0 200")
    };
    // It has the same addresses as everybody, and they are its own.
    let up = || stage.attempt(&one, &own.map(ask)).is_ok_and(|o| o.iter().all(|o| o.ok));
    ensure!(wait_until(Duration::from_secs(20), up), "the first sandbox does not serve");
    let mut probes: Vec<_> = own.iter().copied().map(ask).collect();
    for address in ["198.18.0.3", "198.18.0.4", "198.18.0.255", "198.19.0.2", "fd50:616e:6461::3"] {
        probes.push(ask(address).with("timeout", 3));
        probes.push(Probe::udp(address, 7000, b"x").with("timeout", 2));
        probes.push(Probe::ping(address, b"x").with("timeout", 2));
    }
    let outcomes = stage.refused(&other, &probes)?;
    drop(outcomes);
    // Neither by the wire itself: both would get the same address.
    let mine = frames::syn((GUEST.1, 40_000), (Ipv4Addr::new(198, 18, 0, 3), 7000));
    let to_all = frames::ethernet(GUEST.0, [0xff; 6], 0x0800, &mine);
    let to_same = frames::ethernet(GUEST.0, GUEST.0, 0x0800, &mine);
    let who = frames::arp(1, GUEST, ([0; 6], Ipv4Addr::new(198, 18, 0, 3)));
    let listen = "import socket, time\n\
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.settimeout(6)\n\
        end = time.time() + 6\n\
        while time.time() < end:\n    try: d = s.recvfrom(4096)\n    except OSError: break\n    \
        if d[1][0] != 'lo' and d[1][2] != 4: print(d[0].hex(), flush=True)";
    one.write("/root/listen.py", listen.as_bytes())?;
    one.output("python3 /root/listen.py >/root/heard 2>/dev/null </dev/null & sleep 1")?;
    let marked = frames::ethernet(GUEST.0, [0xff; 6], 0x88b5, b"to-another-sandbox");
    stage.refused(
        &other,
        &[to_all, to_same, who, marked].map(|frame| Probe::frame(&frame, b"\x00\x12\x00\x12")),
    )?;
    std::thread::sleep(Duration::from_secs(1));
    let heard = one.output("cat /root/heard")?;
    assert!(!heard.contains(&hex(b"to-another-sandbox")) && !heard.contains("c6120003"), "{heard}");
    Ok(())
}

#[test]
fn frames_that_pretend_go_nowhere() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&everything())?;
    let site: Ipv4Addr = SITE_A.parse()?;
    let datagram = |text: &[u8]| frames::udp(4000, 123, text);
    let packet = |from: Ipv4Addr, text: &[u8]| frames::v4(from, site, 17, &datagram(text));
    let six = |from: &str| {
        let (from, to) = (from.parse().expect("v6"), "2001:db8:1::10".parse().expect("v6"));
        frames::v6(from, to, 17, &datagram(b"spoofed"))
    };
    let other = Ipv4Addr::new(198, 18, 0, 77);
    let stranger = [2, 0, 0, 0, 0, 0x99];
    let from = |mac, payload: &[u8]| frames::ethernet(mac, GATEWAY.0, 0x0800, payload);
    // The first fragment, a later one, and a header that is longer than it has bytes.
    let fragment = frames::changed(packet(GUEST.1, b"spoofed-in-a-fragment"), 6, 0x20);
    let late = frames::changed(packet(GUEST.1, b"spoofed-behind"), 7, 9);
    let routed = frames::changed(packet(GUEST.1, b"spoofed"), 0, 0x4f);
    let mut damaged = packet(GUEST.1, b"spoofed");
    damaged[10] ^= 1;
    let tagged = [&[0x00, 0x05, 0x08, 0x00][..], &packet(GUEST.1, b"spoofed-vlan")].concat();
    let tunnel = frames::v4(GUEST.1, site, 4, &packet(GUEST.1, b"spoofed-in-ip"));
    let gre = frames::v4(GUEST.1, site, 47, &packet(GUEST.1, b"spoofed-in-gre"));
    let sctp = frames::v4(GUEST.1, site, 132, b"spoofed-in-sctp");
    let bad = [
        from(GUEST.0, &packet(other, b"spoofed")),
        from(GUEST.0, &packet(GATEWAY.1, b"spoofed")),
        from(GUEST.0, &packet(HOST_V4, b"spoofed")),
        from(GUEST.0, &packet(Ipv4Addr::UNSPECIFIED, b"spoofed")),
        from(GUEST.0, &packet(Ipv4Addr::LOCALHOST, b"spoofed")),
        from(stranger, &packet(GUEST.1, b"spoofed")),
        from(GATEWAY.0, &packet(GUEST.1, b"spoofed")),
        from([0xff; 6], &packet(GUEST.1, b"spoofed")),
        from(GUEST.0, &damaged),
        from(GUEST.0, &fragment),
        from(GUEST.0, &late),
        from(GUEST.0, &routed),
        from(GUEST.0, &tunnel),
        from(GUEST.0, &gre),
        from(GUEST.0, &sctp),
        frames::ethernet(GUEST.0, GATEWAY.0, 0x8100, &tagged),
        frames::ethernet(GUEST.0, GATEWAY.0, 0x86dd, &six("fd50:616e:6461::77")),
        frames::ethernet(GUEST.0, GATEWAY.0, 0x86dd, &six("2001:db8:66::1")),
        frames::ethernet(GUEST.0, GATEWAY.0, 0x88cc, b"spoofed-lldp"),
        // Who says that it is the gateway, or asks for others.
        frames::arp(2, (GUEST.0, GATEWAY.1), (GATEWAY.0, GATEWAY.1)),
        frames::arp(1, (stranger, other), ([0; 6], GATEWAY.1)),
        frames::arp(1, GUEST, ([0; 6], other)),
        from(GUEST.0, &packet(GUEST.1, b"spoofed")[..20]),
        vec![0; 14],
    ];
    // An answer of the site, which a complaint about the frame is not.
    let answer = [&site.octets()[..], &[198]].concat();
    let probes: Vec<_> = bad.iter().map(|frame| Probe::frame(frame, &answer)).collect();
    let probes: Vec<_> = probes.into_iter().map(|probe| probe.with("timeout", 2)).collect();
    stage.closed(&sandbox, &probes)?;
    let log = stage.log(&sandbox)?;
    let other = log.iter().filter(|line| line["kind"] == "other" && line["verdict"] == "deny");
    assert!(other.count() >= 5, "{log:#?}");
    // The same by an honest hand.
    let honest = from(GUEST.0, &packet(GUEST.1, b"honest"));
    stage.open(&sandbox, &[Probe::frame(&honest, &answer)])?;
    let echo = frames::echo_request(GUEST.0, GATEWAY.0, GUEST.1, GATEWAY.1, b"honest");
    stage.open(&sandbox, &[Probe::frame(&echo, b"honest")])?;
    let seen = stage.lab.seen()?;
    assert!(seen.datagrams.iter().any(|datagram| datagram.said == b"honest"));
    // And the network is as good as before.
    stage.open(&sandbox, &[Probe::resolve("a.lab"), Probe::http(SITE_A, "a.lab", "/")])?;
    Ok(())
}
