//! Putting a volume into the machine.

use super::start::{damaged, take};
use super::{Answer, Monitor};
use crate::control::{Attach, Failure, Received, Reply, Request, Role};
use crate::disk::Disk;

impl Monitor {
    /// Fills a slot of a machine that stands still.
    pub(super) fn attach(&mut self, attach: Attach, mut with: Received<Request>) -> Answer {
        let machine = self.machine()?;
        if machine.state().is_none() {
            let why = "only a machine that stands still takes a volume";
            return Err(Failure::Refused(why.into()));
        }
        let base = take(&mut with, Role::Disk)?.into();
        let layers = with.take_all(Role::Layer).into_iter().map(Into::into).collect();
        let top = take(&mut with, Role::Top)?.into();
        let opened = Disk::layered(base, layers, top).and_then(|mut volume| {
            volume.set_lasting(attach.lasting)?;
            Ok(volume)
        });
        let volume = opened.map_err(|e| damaged("volume", &e.to_string()))?;
        if !machine.board.devices.put(attach.slot.into(), volume) {
            let why = format!("slot {} does not take a volume", attach.slot);
            return Err(Failure::Refused(why));
        }
        Ok((Reply::Done, None))
    }
}
