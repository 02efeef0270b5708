//! The tables of `bench kvm`, made of its samples.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::stats::percentile;

/// The sides of a pair, and what the tables call them.
const SIDES: [(&str, &str); 2] = [("ours", "ours"), ("theirs", "Firecracker")];

/// What the figures mean. Not the figures themselves: they come with each run.
const METHOD: &str = "\
Measured in `cargo xtask nested` with one processor. Both monitors run the same kernel, initramfs, \
root and memory, with one vCPU; both guests have a writable ext4 and a vsock device, and their \
agents are spoken to by the same client. All files are in memory. A pair is one of each, and who \
begins alternates.

* **request**: ours begins before the directory of the machine is made, and includes its control \
  group, sockets and disk layer; it is jailed, as always. Firecracker begins when its process is \
  started; its directory, its copy of the disk and the socket for its agent are there already, and \
  it runs without its jailer and without its filter of system calls. So every difference in what is \
  counted is in Firecracker's favour.
* **guest running**: the monitor has answered that its vCPU runs: to `Run` after a fork of the \
  zygote, or to `PUT /snapshot/load` with `resume_vm`. There is one processor, and the guest may \
  get it before the answer does: so this moment has two modes.
* **first answer**: the guest's agent has acknowledged a new identity, clock and entropy. After a \
  restore Firecracker resets the vsock device, and the agent dials anew, a step of its own below; \
  ours keeps the agent's connection across a fork.
* **first exec**: `echo hi` has been answered. **another exec**: the same command right after it, \
  which is what the guest itself needs for it.
* **stall**: a machine that has written 80 MiB and its disk is copied while it runs. Ours: from \
  the order to its vCPUs to stop until they run again, as the monitor measured. Firecracker: pause \
  and full snapshot, without the resume.

Steps named *answer*, *birth* and *around it* are what the server saw beyond what the monitor \
measured: messages, the end of the keeper's start, and waiting for the one processor.
";

const REST: &str = "\
*Another exec* is what guest and agent need for a command whose pages are mapped. What the first \
one takes beyond that, and most of the first answer, is the guest's first touch of each of its \
pages: a nested page fault, which is an exit, also for a page that the process has already. Between \
the request and the running guest most is *fetch*, the copies of the pages that a guest is known to \
write first; the rest is the new process and its virtual machine.
";

const COUNTED: &str = "\
The clock counts instructions of the emulated machine, one a nanosecond, so figures repeat \
whatever the host does. This counts work: it knows nothing of cache misses, of real hardware's \
page walks, or of what runs in parallel. Nothing here waits for a disk; a wait for the kernel's \
timers counts in full.
";

const TIMED: &str = "\
The clock is the host's, so the figures contain whatever else the host did.
";

const FOOTPRINT: &str = "\
From `/proc/PID/smaps`. *Private* pages belong to one machine alone; *PSS* adds its \
share of those that it has in common with others: the bake's pages and the monitor's program. The \
mapping of guest memory is told from the rest, which is the monitor's own: code, heap, stacks. The \
keeper is process 1 of the machine's namespaces. *Charged* is `memory.current` of the machine's \
control group, with page tables and KVM's own memory; what was charged to the zygote is not in it. \
Means of machines that are alive together.
";

/// The report for people.
pub fn text(report: &Value, wall: bool) -> Result<String> {
    let both = report["firecracker"].is_string();
    let mut text = format!("{METHOD}\n{}\n", if wall { TIMED } else { COUNTED });
    text += &format!("Monitor: {}.", report["monitor"].as_str().unwrap_or("?"));
    if let Some(version) = report["firecracker"].as_str() {
        text += &format!(" Compared with {version}, given by `--firecracker`.");
    }
    text += "\n\n## Create\n";
    for (side, name) in SIDES.iter().filter(|(side, _)| both || *side == "ours") {
        text += &format!("\n{}\n", steps(&report["create"][side]["steps"], name)?);
    }
    text += &format!("{}\n{REST}", moments(&report["create"], both)?);
    text += "\n## Copying a running machine\n";
    for (side, name) in SIDES.iter().filter(|(side, _)| both || *side == "ours") {
        text += &format!("\n{}\n", steps(&report["stall"][side]["steps"], name)?);
    }
    text += &moments(&report["stall"], both)?;
    text += &format!("\n## Memory of idle machines\n\n{FOOTPRINT}\n{}", footprint(report));
    Ok(text)
}

/// The report for programs: percentiles instead of samples.
pub fn figures(report: &Value) -> Result<Value> {
    let mut figures = json!({
        "n": report["n"], "memory_mb": report["memory_mb"], "monitor": report["monitor"],
        "firecracker": report["firecracker"], "footprint_kib": report["footprint"],
    });
    for kind in ["create", "stall"] {
        for (side, _) in SIDES {
            for part in ["steps", "moments"] {
                let rows = rows(&report[kind][side][part])?;
                let rows: Map<String, Value> = rows
                    .into_iter()
                    .map(|(name, samples)| {
                        let of = |q| percentile(&samples, q);
                        let row = json!({
                            "n": samples.len(), "min": of(0.0), "p50": of(0.5), "p95": of(0.95),
                            "mean": mean(&samples),
                        });
                        (name, row)
                    })
                    .collect();
                figures[format!("{kind}_us")][side][part] = rows.into();
            }
        }
    }
    Ok(figures)
}

/// A table of steps that add up.
fn steps(steps: &Value, title: &str) -> Result<String> {
    let rows = rows(steps)?;
    let total: f64 = rows.iter().map(|(_, samples)| mean(samples)).sum();
    let mut text = format!("| {title}, µs | n | min | p50 | p95 | mean |\n{}", rule(5));
    for (name, samples) in &rows {
        text += &row(name, samples);
    }
    Ok(text + &format!("| **sum** | | | | | {total:.0} |\n"))
}

/// A table of moments, side by side.
fn moments(pairs: &Value, both: bool) -> Result<String> {
    let ours = rows(&pairs["ours"]["moments"])?;
    if !both {
        let mut text = format!("| µs | n | min | p50 | p95 | mean |\n{}", rule(5));
        ours.iter().for_each(|(name, samples)| text += &row(name, samples));
        return Ok(text);
    }
    let theirs = rows(&pairs["theirs"]["moments"])?;
    let mut text = format!("| p50, µs | pairs | ours | Firecracker | ratio |\n{}", rule(4));
    for (name, samples) in &ours {
        let (_, others) =
            theirs.iter().find(|(other, _)| other == name).context("a moment of one side only")?;
        let [our, their] = [samples, others].map(|samples| percentile(samples, 0.5));
        text += &format!(
            "| {name} | {} | {our:.0} | {their:.0} | {:.2} |\n",
            samples.len().min(others.len()),
            their / our
        );
    }
    Ok(text)
}

/// A table of memory.
fn footprint(report: &Value) -> String {
    let mut text = format!(
        "| KiB, of {} machines | monitor PSS | monitor private | guest PSS | guest private | \
         keeper PSS | charged |\n{}",
        report["alive"],
        rule(6)
    );
    for (side, name) in SIDES {
        for (when, weight) in report["footprint"][side].as_object().into_iter().flatten() {
            let kib = |value: &Value| match value.as_f64() {
                Some(kib) => format!("{kib:.0}"),
                None => "–".to_owned(),
            };
            let cells = ["monitor_pss", "monitor_private", "guest_pss", "guest_private"]
                .map(|field| kib(&weight[field]));
            text += &format!(
                "| {name}, {when} | {} | {} | {} |\n",
                cells.join(" | "),
                kib(&weight["keeper"]["monitor_pss"]),
                kib(&weight["charged"])
            );
        }
    }
    text
}

fn rule(numbers: usize) -> String {
    format!("|---|{}\n", "---:|".repeat(numbers))
}

fn row(name: &str, samples: &[f64]) -> String {
    let of = |q| percentile(samples, q);
    format!(
        "| {name} | {} | {:.0} | {:.0} | {:.0} | {:.0} |\n",
        samples.len(),
        of(0.0),
        of(0.5),
        of(0.95),
        mean(samples)
    )
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len().max(1) as f64
}

/// Names with their samples, in their order.
fn rows(value: &Value) -> Result<Vec<(String, Vec<f64>)>> {
    serde_json::from_value(value.clone()).context("samples of the measurement")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_sum_and_sides_are_compared() {
        let side = |by: f64| {
            json!({
                "steps": [["fork", [by, 3.0 * by]], ["run", [by, by]]],
                "moments": [["running", [2.0 * by, 2.0 * by]]],
            })
        };
        let pairs = json!({ "ours": side(10.0), "theirs": side(40.0) });
        let table = steps(&pairs["ours"]["steps"], "ours").unwrap();
        assert!(table.ends_with("| **sum** | | | | | 30 |\n"), "{table}");
        let table = moments(&pairs, true).unwrap();
        assert!(table.ends_with("| running | 2 | 20 | 80 | 4.00 |\n"), "{table}");
        assert!(moments(&pairs, false).unwrap().ends_with("| running | 2 | 20 | 20 | 20 | 20 |\n"));
    }
}
