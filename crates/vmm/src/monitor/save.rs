//! Writing the machine to files: a snapshot, and what it touched first.
//!
//! Only a machine that stands still is written. A running one is copied first; the copy writes
//! while the source runs on.

use std::fs::File;

use super::start::{kernel, take};
use super::{Answer, Monitor};
use crate::control::{Failure, Received, Reply, Request, Role};
use crate::kvm::cpuid;
use crate::memory::diff;
use crate::memory::pages::{self, Kind};
use crate::memory::working_set::WorkingSet;
use crate::memory::{Extent, Mapping};
use crate::snapshot::Saved;

impl Monitor {
    /// Writes state and memory.
    pub(super) fn save(&mut self, mut with: Received<Request>) -> Answer {
        let state_file = File::from(take(&mut with, Role::State)?);
        let machine = self.machine()?;
        let Some(state) = machine.state() else {
            return Err(Failure::Refused("only a machine that stands still is saved".into()));
        };
        let saved = Saved {
            memory_mb: (machine.mapping.bytes() >> 20) as u32,
            processor: cpuid::identity(&machine.host.cpuid),
            vm: state.clone(),
            ioapic: machine.board.wiring.ioapic().save(),
            serial: machine.board.ports().serial.save(),
            devices: machine.board.devices.save(),
        };
        saved.write(&state_file).map_err(|e| kernel("write the state", &e))?;
        let pagemap = with.take(Role::Pagemap).map(File::from);
        let written = written(&machine.mapping, pagemap.as_ref());
        let wrote = match (with.take(Role::Memory), with.take(Role::Diff)) {
            (Some(memory), None) => diff::write_whole(&machine.mapping, &written, &memory.into()),
            (None, Some(diff)) => {
                // The new one stands for the one that the machine began with as well.
                let all = pages::union(&written, &machine.diff);
                diff::write(&machine.mapping, all, &diff.into())
            }
            _ => return Err(Failure::Refused("one file for memory is needed".into())),
        };
        wrote.map_err(|e| kernel("write the memory", &e))?;
        Ok((Reply::Done, None))
    }

    /// Writes which pages the machine has touched.
    pub(super) fn record(&mut self, mut with: Received<Request>) -> Answer {
        let file = File::from(take(&mut with, Role::WorkingSet)?);
        let pagemap = File::from(take(&mut with, Role::Pagemap)?);
        let machine = self.machine()?;
        WorkingSet::record(&machine.mapping, &pagemap)
            .and_then(|set| set.write(&file))
            .map_err(|e| kernel("record what was touched", &e))?;
        Ok((Reply::Done, None))
    }
}

/// Pages that may differ from what the memory was mapped from.
fn written(mapping: &Mapping, pagemap: Option<&File>) -> Vec<Extent> {
    pagemap
        .and_then(|pagemap| pages::find(mapping, pagemap, Kind::Written).ok())
        .unwrap_or_else(|| pages::all(mapping))
}
