//! The network: how fast bytes go through the gateway, what that costs, and how well neighbours are
//! kept apart.
//!
//! Real guests, the real gateway, servers on the other side of a cable that ends in a namespace of
//! its own: nothing leaves the machine. A guest that is emulated sends and receives in emulated
//! code, so its own speed is most of every figure; what the gateway costs is its processor time.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pandastack_tests::lab::{CROWD, Lab};
use pandastack_tests::{Options, Sandbox, Server, own_memory};
use serde_json::{Value, json};

use super::create::ms;
use super::publish;
use super::stats::Samples;

/// How much to measure.
#[derive(Args, Clone)]
pub struct Plan {
    /// MB per direction and round
    #[arg(long, default_value_t = 32)]
    mb: u64,
    /// Rounds of each kind
    #[arg(short, default_value_t = 5)]
    n: usize,
    /// Small requests of a neighbour
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Sandboxes with fifty connections each, beside one with a thousand
    #[arg(long, default_value_t = 20)]
    crowd: usize,
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { mb: 32, n: 5, requests: 1000, crowd: 20, docs: false }
    }
}

/// A place of the laboratory's internet that answers HTTP, and lines on port 5000.
const PLACE: &str = "198.51.100.7";

const DOWN: &str = r#"
import socket, sys, time
size = int(sys.argv[1])
s = socket.create_connection(("198.51.100.7", 80), 30)
s.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: x.lab\r\nConnection: close\r\n\r\n" % size)
buffer, got = bytearray(1 << 18), 0
while n := s.recv_into(buffer): got += n
assert got >= size, got
"#;

const UP: &str = r#"
import socket, sys
size = int(sys.argv[1])
s = socket.create_connection(("198.51.100.7", 80), 30)
s.sendall(b"POST / HTTP/1.1\r\nHost: x.lab\r\nContent-Length: %d\r\n\r\n" % size)
piece = bytes(1 << 18)
for _ in range(size // len(piece)): s.sendall(piece)
s.sendall(bytes(size % len(piece)))
assert s.recv(12).endswith(b"200")
"#;

const REQUESTS: &str = r#"
import json, socket, sys, time
s = socket.create_connection(("198.51.100.7", 5000), 20)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.recv(100)
times = []
for i in range(int(sys.argv[1])):
    begin = time.perf_counter(); s.sendall(b"request\n"); got = b""
    while not got.endswith(b"\n"): got += s.recv(100)
    times.append((time.perf_counter() - begin) * 1e3)
print(json.dumps(times))
"#;

/// Runs all of it.
pub fn run(plan: &Plan) -> Result<()> {
    let Some(lab) = Lab::start()? else {
        anyhow::bail!("this benchmark makes network namespaces, which takes root");
    };
    let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
    let server = lab.serve(Options { args, fork: true, ..Options::default() })?;
    server.wait_for_zygotes()?;
    let bench = Bench { gateway: server.gateway()?, server };
    let (table, figures) = bench.throughput(plan)?;
    let (crowd_table, crowd_figures) = bench.neighbours(plan)?;
    bench.server.stop()?;
    publish(
        "net",
        &(table + &crowd_table),
        json!({ "throughput": figures, "neighbours": crowd_figures }),
        plan.docs,
    )
}

struct Bench {
    server: Server,
    gateway: u32,
}

impl Bench {
    fn sandbox(&self) -> Result<Sandbox> {
        self.server.client().create(&json!({
            "template": "base", "ttl_seconds": 0,
            "egress": { "allow": [{ "cidr": format!("{PLACE}/32") }], "log": false },
        }))
    }

    fn throughput(&self, plan: &Plan) -> Result<(String, Value)> {
        let sandbox = self.sandbox()?;
        let machine = sandbox.pid()?;
        let (mut speed, mut cost) = (Samples::default(), Samples::default());
        for (name, program) in [("guest → server", UP), ("server → guest", DOWN)] {
            sandbox.write("/root/transfer.py", program.as_bytes())?;
            for round in 0..=plan.n {
                let before = (cpu_seconds(self.gateway)?, cpu_seconds(machine)?);
                let begin = Instant::now();
                sandbox.output(&format!("python3 /root/transfer.py {}", plan.mb * 1_000_000))?;
                let took = ms(begin) / 1e3;
                // The first one is translated code and cold caches.
                if round > 0 {
                    let gigabytes = plan.mb as f64 / 1e3;
                    speed.add(name, plan.mb as f64 * 8.0 / took);
                    let after = (cpu_seconds(self.gateway)?, cpu_seconds(machine)?);
                    cost.add(&format!("{name}: gateway"), (after.0 - before.0) / gigabytes);
                    cost.add(&format!("{name}: machine"), (after.1 - before.1) / gigabytes);
                }
            }
        }
        sandbox.delete()?;
        let table = format!(
            "\n## One connection, {} MB\n\n{}\nProcessor time per gigabyte:\n\n{}",
            plan.mb,
            speed.table("Mbit/s"),
            cost.table("s/GB")
        );
        Ok((table, json!({ "mbit_s": speed.json(), "cpu_s_per_gb": cost.json() })))
    }

    fn neighbours(&self, plan: &Plan) -> Result<(String, Value)> {
        let neighbour = self.sandbox()?;
        neighbour.write("/root/requests.py", REQUESTS.as_bytes())?;
        let mut samples = Samples::default();
        requests(&neighbour, plan.requests)?;
        for time in requests(&neighbour, plan.requests)? {
            samples.add("alone", time);
        }
        let mut memory = 0.0;
        // The machines alone disturb a neighbour on a host with few processors: what the gateway
        // adds is the difference of the two.
        for (name, place) in [
            ("the crowd talks to itself", "itself"),
            ("the crowd talks through the gateway", PLACE),
        ] {
            let counts = std::iter::once(1000).chain(std::iter::repeat_n(50, plan.crowd));
            let crowd = counts.map(|count| self.crowd(count, place)).collect::<Result<Vec<_>>>()?;
            for time in requests(&neighbour, plan.requests)? {
                samples.add(name, time);
            }
            memory = own_memory(self.gateway)? as f64;
            for sandbox in crowd {
                sandbox.delete()?;
            }
        }
        neighbour.delete()?;
        let table = format!(
            "\n## A small request beside {} sandboxes: one holds 1,000 connections, the others 50 each\n\n\
             {}\nThe gateway's memory with all of them: {:.0} MB.\n",
            plan.crowd + 1,
            samples.table("ms"),
            memory / 1e6
        );
        Ok((table, json!({ "ms": samples.json(), "gateway_bytes": memory })))
    }

    /// A sandbox that holds so many connections to a place.
    fn crowd(&self, count: usize, place: &str) -> Result<Sandbox> {
        let sandbox = self.sandbox()?;
        sandbox.write("/root/crowd.py", CROWD.as_bytes())?;
        sandbox.output(&format!(
            "python3 /root/crowd.py {count} {place} >/root/log 2>&1 </dev/null & \
             until grep -q there /root/log; do sleep 0.2; done"
        ))?;
        Ok(sandbox)
    }
}

fn requests(sandbox: &Sandbox, count: usize) -> Result<Vec<f64>> {
    let text = sandbox.output(&format!("python3 /root/requests.py {count}"))?;
    serde_json::from_str(&text).context("times")
}

/// Processor time of a process so far: fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no process")?;
    let fields: Vec<f64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    ensure!(fields.len() == 2, "no times of process {pid}");
    Ok(fields.iter().sum::<f64>() / 100.0)
}
