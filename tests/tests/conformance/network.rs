//! The network device of every machine: what a guest sends comes out of its own wire and of no
//! other, what is sent there reaches the guest's kernel, and nobody waits for a wire that nobody
//! reads.
//!
//! What a gateway makes of the frames is tested elsewhere; here the tests are the gateway, so they
//! hold machines themselves ([`engine`]) instead of asking a server for sandboxes.

mod engine;
mod frames;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pandastack_engine::{After, Machine};
use pandastack_tests::deadline;

use self::engine::{Bench, output, start};
use self::frames::{Datagram, Frame, GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6, Wire};

/// How long nothing must come before it is nothing.
const SILENCE: Duration = Duration::from_secs(1);
/// For what takes milliseconds when nobody is in the way.
const SOON: Duration = Duration::from_secs(20);

fn wire(machine: &dyn Machine) -> Result<Wire> {
    Ok(Wire(machine.network()?))
}

/// Has the guest send a datagram of one word.
async fn say(machine: &dyn Machine, word: &str, to: impl Into<IpAddr>, port: u16) -> Result<()> {
    let line = format!("bash -c 'echo -n {word} > /dev/udp/{}/{port}'", to.into());
    output(machine, &line).await.map(drop)
}

fn datagram(word: &str, from: impl Into<IpAddr>, to: impl Into<IpAddr>, port: u16) -> Datagram {
    Datagram { from: from.into(), to: (to.into(), port), payload: word.as_bytes().to_vec() }
}

/// Sends an echo request of so many bytes, which the guest's kernel must answer on this wire.
fn echo(wire: &Wire, number: u16, bytes: usize) -> Result<()> {
    let payload: Vec<u8> = (0..bytes).map(|at| at as u8 ^ number as u8).collect();
    let request = Frame::echo_request(number, &payload);
    wire.send(&request)?;
    let reply = wire.frame()?;
    ensure!(reply.answers(&request), "echo {number} got {reply:?}");
    Ok(())
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    let work = tokio::time::timeout(deadline(SOON), work);
    work.await.with_context(|| format!("{what} waits for a wire"))
}

/// What is true of every machine, however it came to be.
async fn talks(machine: &dyn Machine) -> Result<()> {
    let wire = wire(machine)?;
    // The first frame is what a program sends: the kernel asks for nothing and announces nothing.
    say(machine, "one", GATEWAY_V4, 4242).await?;
    assert_eq!(wire.frame()?.datagram()?, datagram("one", GUEST_V4, GATEWAY_V4, 4242));
    say(machine, "two", GATEWAY_V6, 4242).await?;
    assert_eq!(wire.frame()?.datagram()?, datagram("two", GUEST_V6, GATEWAY_V6, 4242));
    let far = Ipv4Addr::new(203, 0, 113, 7);
    say(machine, "three", far, 9).await?;
    assert_eq!(wire.frame()?.datagram()?, datagram("three", GUEST_V4, far, 9));

    wire.send(&Frame::who_has())?;
    let reply = wire.frame()?;
    assert!(reply.is_at(), "{reply:?}");
    // The shortest, and the longest that fits into a packet of 1500 bytes.
    echo(&wire, 1, 0)?;
    echo(&wire, 2, 1472)?;

    let pinged = async {
        let line = format!("ping -n -c 1 -W {} {GATEWAY_V4}", deadline(SOON).as_secs());
        output(machine, &line).await
    };
    let answered = async {
        let request = tokio::task::block_in_place(|| wire.frame())?;
        wire.send(&request.echo_reply()?)
    };
    let (pinged, answered) = tokio::join!(pinged, answered);
    answered?;
    assert!(pinged?.contains("1 received"));

    // Names are asked for at the gateway. Nobody waits for the answer that does not come.
    let asking = start(machine, "getent ahostsv4 name.example").await?;
    let asked = wire.frame()?.datagram()?;
    drop(asking);
    assert_eq!((asked.from, asked.to), (GUEST_V4.into(), (GATEWAY_V4.into(), 53)));
    assert!(asked.payload.windows(13).any(|bytes| bytes == b"\x04name\x07example"), "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_talks_to_its_gateway_from_its_first_instant() -> Result<()> {
    let bench = Bench::open()?;
    let source = bench.restore("restored").await?;
    talks(&*source).await.context("a restored machine")?;
    let copies = bench.fork(&*source, &["forked"]).await?;
    talks(&*copies[0]).await.context("a forked machine")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_and_their_source_hear_nothing_of_each_other() -> Result<()> {
    let bench = Bench::open()?;
    let source = bench.restore("source").await?;
    // Waiting in the source's wire, on their way out and in, when it is copied.
    say(&*source, "before", GATEWAY_V4, 1).await?;
    source.pause().await?;
    let own = wire(&*source)?;
    let request = Frame::echo_request(7, b"on its way");
    own.send(&request)?;
    let copies = bench.fork(&*source, &["one", "two"]).await?;
    source.run().await?;
    let mut machines: Vec<(&str, &dyn Machine)> = vec![("source", &*source)];
    machines.extend(["one", "two"].into_iter().zip(copies.iter().map(|copy| &**copy)));
    assert_eq!(own.frame()?.datagram()?, datagram("before", GUEST_V4, GATEWAY_V4, 1));
    assert!(own.frame()?.answers(&request), "the source's own request was lost");

    for (number, (name, machine)) in machines.iter().enumerate() {
        let wire = wire(*machine)?;
        if *name != "source" {
            // What the source had taken in already is in its copies as well.
            let early = wire.rest(SILENCE)?;
            assert!(early.len() <= 1 && early.iter().all(|frame| frame.answers(&request)));
        }
        say(*machine, name, GATEWAY_V4, 2).await?;
        assert_eq!(wire.frame()?.datagram()?, datagram(name, GUEST_V4, GATEWAY_V4, 2));
        echo(&wire, 100 + number as u16, 32).with_context(|| (*name).to_owned())?;
    }
    for (name, machine) in &machines {
        let rest = wire(*machine)?.rest(SILENCE)?;
        assert_eq!(rest, [], "{name} has what is another's");
    }
    // A wire is its machine's own to the end.
    source.kill().await;
    assert!(own.next(SILENCE).is_err(), "the source's wire outlived it");
    for (name, machine) in &machines[1..] {
        echo(&wire(*machine)?, 200, 32).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

/// Sends more than any wire holds, without waiting.
const FLOOD: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setblocking(False)
for n in range(3000):
    try:
        s.sendto(b'flood' + bytes(1400), ('198.18.0.1', 1))
    except BlockingIOError:
        pass
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wire_that_nobody_reads_holds_up_nobody() -> Result<()> {
    let bench = Bench::open()?;
    let machine = bench.restore("unread").await?;
    let flood = format!("python3 -c \"{}\"", FLOOD.trim());
    in_time("a guest", output(&*machine, &flood)).await??;
    assert_eq!(in_time("a guest", output(&*machine, "echo alive")).await??, "alive\n");

    // Full, it costs nothing.
    let cpu = || machine.usage().map(|usage| usage.cpu).context("a machine uses something");
    let (begin, before) = (Instant::now(), cpu()?);
    tokio::time::sleep(deadline(Duration::from_secs(2))).await;
    let share = (cpu()? - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    assert!(share < 0.5, "{share:.2} of a processor for a wire that nobody reads");

    in_time("pause", machine.pause()).await??;
    in_time("run", machine.run()).await??;
    let copies = in_time("a fork", bench.fork(&*machine, &["copy"])).await??;
    let (scratch, out) = (bench.directory("scratch")?, bench.directory("snapshot")?);
    in_time("a snapshot", machine.snapshot(&scratch, &out, After::GoesOn)).await??;

    // Whoever reads at last finds whole frames, and among them what the guest sends from now on.
    for (name, machine) in [("the machine", &*machine), ("its copy", &*copies[0])] {
        let wire = wire(machine)?;
        let mut waited = 0;
        let mut other = || loop {
            let frame = wire.frame()?;
            if !is_flood(&frame) {
                return anyhow::Ok(frame);
            }
            waited += 1;
        };
        say(machine, "after", GATEWAY_V4, 3).await?;
        let after = datagram("after", GUEST_V4, GATEWAY_V4, 3);
        assert_eq!(other()?.datagram()?, after, "{name}");
        let request = Frame::echo_request(9, b"after");
        wire.send(&request)?;
        assert!(other()?.answers(&request), "{name}");
        println!("{name}: {waited} frames waited");
        assert!(name != "the machine" || waited >= 100, "the wire was not full");
    }
    Ok(())
}

fn is_flood(frame: &Frame) -> bool {
    frame.datagram().is_ok_and(|sent| {
        sent.payload.len() == 1405 && sent.payload.starts_with(b"flood") && sent.to.1 == 1
    })
}
