//! The tables of `bench kvm`, made of its samples.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::stats::percentile;

/// Names of sides in the report, and what the tables call them.
type Sides = &'static [(&'static str, &'static str)];

/// What is measured, and its sides. The last one is the one that the others are compared with.
const KINDS: [(&str, Sides); 2] = [("create", CREATE), ("stall", STALL)];
const CREATE: Sides = &[
    ("parked", "ours, from the pool"),
    ("forked", "ours, forked on demand"),
    ("theirs", "Firecracker"),
];
const STALL: Sides = &[("ours", "ours"), ("theirs", "Firecracker")];

/// What the figures mean. Not the figures themselves: they come with each run.
const METHOD: &str = "\
Measured in `cargo xtask nested` with one processor. Both monitors run the same kernel, initramfs, \
root and memory, with one vCPU; both guests have a writable ext4 and a vsock device, and their \
agents are spoken to by the same client. All files are in memory. A round is one of each, and who \
begins alternates.

* **from the pool**: what a server does for a create by default (`--pool 2`). The machine was forked \
  from the zygote and made ready while nobody waited; *made ahead* is what that took.
* **forked on demand**: what a server does for a create when its pool is empty.
* **request**: forked on demand begins before the directory of the machine is made, and includes its \
  control group, sockets and disk layer; ours is jailed, as always. Firecracker begins when its process is \
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
one takes beyond that on demand, and most of the first answer there, is the guest's first touch of \
each of its pages: a nested page fault, which is an exit. The monitor copies the pages that the \
guest will write beside the running guest; with one processor the two take turns. A machine of the \
pool has its working set copied and mapped already, which takes longer than the guest would, and \
nobody waits for it.
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
    text += &tables(&report["create"], CREATE, both)?;
    text += &format!("\n{REST}\n## Copying a running machine\n");
    text += &tables(&report["stall"], STALL, both)?;
    text += &format!("\n## Memory of idle machines\n\n{FOOTPRINT}\n{}", footprint(report));
    Ok(text)
}

/// The report for programs: percentiles instead of samples.
pub fn figures(report: &Value) -> Result<Value> {
    let mut figures = json!({
        "n": report["n"], "memory_mb": report["memory_mb"], "monitor": report["monitor"],
        "firecracker": report["firecracker"], "footprint_kib": report["footprint"],
    });
    for (kind, sides) in KINDS {
        for (side, _) in sides {
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

/// The steps of each side, and the moments of all.
fn tables(kind: &Value, sides: Sides, both: bool) -> Result<String> {
    let shown = &sides[..sides.len() - usize::from(!both)];
    let mut text = String::new();
    for (side, name) in shown {
        text += &format!("\n{}", steps(&kind[side]["steps"], name)?);
    }
    Ok(text + "\n" + &moments(kind, shown, both)?)
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

/// A table of moments, side by side: medians, and how often ours fits into the last one's.
fn moments(kind: &Value, sides: &[(&str, &str)], both: bool) -> Result<String> {
    let columns = sides.iter().map(|(side, name)| Ok((*name, rows(&kind[side]["moments"])?)));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let compared = if both { columns.len() - 1 } else { 0 };
    let mut text = "| p50, µs | n |".to_owned();
    columns.iter().for_each(|(name, _)| text += &format!(" {name} |"));
    columns[..compared].iter().for_each(|(name, _)| text += &format!(" ratio, {name} |"));
    text += &format!("\n{}", rule(1 + columns.len() + compared));
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in columns.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    for name in names {
        let of = |(_, rows): &(&str, Vec<(String, Vec<f64>)>)| {
            let samples = &rows.iter().find(|(other, _)| other == name)?.1;
            Some((samples.len(), percentile(samples, 0.5)))
        };
        let cells: Vec<Option<(usize, f64)>> = columns.iter().map(of).collect();
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!(" {value:.digits$} |"),
            None => " – |".to_owned(),
        };
        let count = cells.iter().flatten().map(|(count, _)| *count).min().unwrap_or(0);
        text += &format!("| {name} | {count} |");
        cells.iter().for_each(|cell| text += &number(cell.map(|it| it.1), 0));
        let last = cells.last().copied().flatten();
        for cell in &cells[..compared] {
            text += &number(last.zip(*cell).map(|(theirs, ours)| theirs.1 / ours.1), 2);
        }
        text += "\n";
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
    for (side, name) in STALL {
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
        let mut kind = json!({ "ours": side(10.0), "theirs": side(40.0) });
        let table = steps(&kind["ours"]["steps"], "ours").unwrap();
        assert!(table.ends_with("| **sum** | | | | | 30 |\n"), "{table}");
        let table = moments(&kind, STALL, true).unwrap();
        assert!(table.ends_with("| running | 2 | 20 | 80 | 4.00 |\n"), "{table}");
        assert!(moments(&kind, &STALL[..1], false).unwrap().ends_with("| running | 2 | 20 |\n"));
        kind["theirs"]["moments"] = json!([]);
        assert!(moments(&kind, STALL, true).unwrap().ends_with("| running | 2 | 20 | – | – |\n"));
    }
}
