//! What the server is doing when it is killed, and what may have come of it.

use anyhow::{Context, Result, ensure};
use pandastack_sandbox::fault::Point;
use pandastack_tests::{Client, Sandbox, ended_for, holder, kill};
use serde_json::{Value, json};

use crate::lab::{Lab, unanswered};
use crate::{survivors, volumes};

/// An operation with steps that a crash could come between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    Delete,
    DeleteAsleep,
    Die,
    Pause,
    Resume,
    Limit,
    Snapshot,
    DeleteSnapshot,
    Fork,
    Hibernate,
    Wake,
    Promote,
    Stop,
    Recover,
    Adopt,
    MakeVolume,
    CreateWithVolume,
    DeleteWithVolume,
    DeleteVolume,
}

impl Step {
    pub const ALL: [Self; 20] = [
        Self::Create,
        Self::Delete,
        Self::DeleteAsleep,
        Self::Die,
        Self::Pause,
        Self::Resume,
        Self::Limit,
        Self::Snapshot,
        Self::DeleteSnapshot,
        Self::Fork,
        Self::Hibernate,
        Self::Wake,
        Self::Promote,
        Self::Stop,
        Self::Recover,
        Self::Adopt,
        Self::MakeVolume,
        Self::CreateWithVolume,
        Self::DeleteWithVolume,
        Self::DeleteVolume,
    ];

    /// The points that it comes to, in this order.
    pub fn points(self) -> &'static [Point] {
        use Point::*;
        match self {
            Self::Create => &[
                CreateJournalled,
                MachineObtained,
                MachineAttached,
                MachineAdopted,
                ReadyJournalled,
                ReadyShown,
            ],
            Self::Delete => &[EndJournalled, EndReleased, EndCleared, EndDeleted],
            Self::DeleteAsleep => {
                &[EndJournalled, EndReleased, FilesHidden, EndCleared, EndDeleted]
            }
            Self::Die => &[FailJournalled, FailReleased],
            Self::Pause => &[PauseJournalled, PauseDone],
            Self::Resume => &[ResumeJournalled, ResumeDone],
            Self::Limit => &[LimitJournalled],
            Self::Snapshot => &[FilesBegun, FilesWritten, FilesSettled, FilesPublished],
            Self::DeleteSnapshot => &[FilesHidden],
            Self::Fork => &[
                ForkJournalled,
                ForkCopied,
                ForkHandedOver,
                MachineObtained,
                MachineAdopted,
                ReadyJournalled,
            ],
            Self::Hibernate => &[
                HibernatePaused,
                FilesBegun,
                FilesWritten,
                FilesSettled,
                FilesPublished,
                HibernateJournalled,
                HibernateParted,
            ],
            Self::Wake => &[
                MachineObtained,
                MachineAttached,
                MachineAdopted,
                WakeJournalled,
                // From here on it has a machine and no files.
                FilesHidden,
                WakeCleared,
            ],
            Self::Promote => &[LimitJournalled, PromoteKept, EndCleared],
            Self::Stop => &[StopClosed, FilesSettled, FilesPublished, StopRested],
            Self::Recover => &[RecoveryEnding, RecoveryRecords, RecoveryMachines],
            Self::Adopt => {
                &[RecoveryRecords, RecoveryMachines, AdoptTaken, AdoptAttached, AdoptAnswered]
            }
            Self::MakeVolume => &[VolumeMade, VolumePublished],
            Self::CreateWithVolume => &[
                VolumesReserved,
                CreateJournalled,
                MachineObtained,
                MachineAdopted,
                ReadyJournalled,
                ReadyShown,
            ],
            Self::DeleteWithVolume => &[EndJournalled, EndReleased, EndCleared, EndDeleted],
            Self::DeleteVolume => &[VolumeHidden],
        }
    }

    /// Kills a server at each of its points.
    pub fn run(self) -> Result<()> {
        if self == Self::Adopt {
            return survivors::taken_over(self);
        }
        let mut lab = Lab::start(self.needs_forks())?;
        match self {
            Self::DeleteAsleep => self.delete_asleep(&mut lab),
            Self::Wake => self.wake(&mut lab),
            Self::Promote => self.promote(&mut lab),
            Self::Recover => self.recover(&mut lab),
            Self::MakeVolume => volumes::make(self, &mut lab),
            Self::CreateWithVolume => volumes::create(self, &mut lab),
            Self::DeleteWithVolume => volumes::release(self, &mut lab),
            Self::DeleteVolume => volumes::delete(self, &mut lab),
            _ => self.each(|point| self.at(&mut lab, point)),
        }
    }

    /// Whether it begins with a copy of a machine.
    fn needs_forks(self) -> bool {
        use Step::*;
        let volumes = [MakeVolume, CreateWithVolume, DeleteWithVolume, DeleteVolume];
        ![Create, Delete, Die, Pause, Resume].contains(&self) && !volumes.contains(&self)
    }

    /// Does this for each of its points.
    pub fn each(self, mut at: impl FnMut(Point) -> Result<()>) -> Result<()> {
        for point in self.points() {
            let begin = std::time::Instant::now();
            at(*point).with_context(|| format!("{self:?}, killed at {point:?}"))?;
            eprintln!("{self:?} at {point:?}: {} ms", begin.elapsed().as_millis());
        }
        Ok(())
    }

    /// Those that need a new sandbox each time.
    fn at(self, lab: &mut Lab, point: Point) -> Result<()> {
        let forks = self.needs_forks();
        if self == Self::Create {
            let body = json!({ "template": "base" });
            lab.strike(point, forks, |client| unanswered(client.post("/v1/sandboxes", &body)))?;
            return lab.is_empty();
        }
        let persistent = self == Self::Stop;
        let body = json!({ "template": "base", "persistent": persistent, "ttl_seconds": 9000 });
        let sandbox = furnish(lab.client()?.create(&body)?)?;
        let post = |client: &Client, order: &str| {
            unanswered(client.post(&sandbox.path(order), &Value::Null))
        };
        match self {
            Self::Delete => {
                let client = lab
                    .strike(point, forks, |client| unanswered(client.delete(&sandbox.path(""))))?;
                gone(&client, &sandbox, &["deleted"])?;
            }
            Self::Die => {
                let pid = sandbox.pid()?;
                let client = lab.strike(point, forks, |_| kill(pid))?;
                gone(&client, &sandbox, &["machine_died"])?;
            }
            Self::Pause => {
                let client = lab.strike(point, forks, |client| post(client, "/pause"))?;
                gone(&client, &sandbox, &["server_crash"])?;
            }
            Self::Resume => {
                sandbox.pause()?;
                let client = lab.strike(point, forks, |client| post(client, "/resume"))?;
                gone(&client, &sandbox, &["server_crash"])?;
            }
            Self::Limit => {
                sandbox.hibernate()?;
                let body = json!({ "ttl_seconds": 5000 });
                let client = lab.strike(point, false, |client| {
                    unanswered(client.patch(&sandbox.path("/lifecycle"), &body))
                })?;
                lab.has(&[&sandbox.id], &[])?;
                let lifecycle = client.get(&sandbox.path("/lifecycle"))?.json();
                ensure!(lifecycle["ttl_seconds"] == 5000, "{lifecycle}");
                whole(&client, &sandbox, 2)?;
            }
            Self::Snapshot => {
                let client = lab.strike(point, forks, |client| post(client, "/snapshots"))?;
                gone(&client, &sandbox, &["server_crash"])?;
                if point == Point::FilesPublished {
                    let list = client.get("/v1/snapshots")?.json();
                    let id = list["snapshots"][0]["id"].as_str().context("a snapshot")?.to_owned();
                    lab.has(&[], &[&id])?;
                    let copy = client.thaw(&id)?;
                    whole(&client, &copy, 2)?;
                    ensure!(client.delete(&format!("/v1/snapshots/{id}"))?.status == 204);
                }
            }
            Self::DeleteSnapshot => {
                let id = sandbox.snapshot()?;
                let path = format!("/v1/snapshots/{id}");
                let client = lab.strike(point, forks, |client| unanswered(client.delete(&path)))?;
                ensure!(client.get(&path)?.status == 404, "the snapshot is there");
            }
            Self::Fork => {
                let body = json!({ "count": 2 });
                let client = lab.strike(point, forks, |client| {
                    unanswered(client.post(&sandbox.path("/fork-tree"), &body))
                })?;
                gone(&client, &sandbox, &["server_crash"])?;
            }
            Self::Hibernate => {
                let client = lab.strike(point, forks, |client| post(client, "/hibernate"))?;
                self.asleep_or_gone(lab, &client, &sandbox, point)?;
            }
            Self::Stop => {
                let other = lab.client()?.base()?;
                let server = lab.pid()?;
                let client = lab.strike(point, forks, |_| terminate(server))?;
                gone(&client, &other, &["server_crash", "server_stopped"])?;
                self.asleep_or_gone(lab, &client, &sandbox, point)?;
            }
            _ => unreachable!("{self:?} has a function of its own"),
        }
        lab.is_empty()
    }

    /// The files decide: once they are on the shelf it sleeps, and before that its machine was all
    /// that there was.
    fn asleep_or_gone(
        self,
        lab: &Lab,
        client: &Client,
        sandbox: &Sandbox,
        point: Point,
    ) -> Result<()> {
        let published = self.points().iter().position(|p| *p == Point::FilesPublished);
        let here = self.points().iter().position(|p| *p == point);
        if here < published {
            return gone(client, sandbox, &["server_crash"]);
        }
        lab.has(&[&sandbox.id], &[])?;
        whole(client, sandbox, 2)
    }

    fn delete_asleep(self, lab: &mut Lab) -> Result<()> {
        let count = self.points().len();
        let mut sandboxes = Vec::new();
        for _ in 0..count {
            let sandbox = furnish(lab.client()?.base()?)?;
            sandbox.hibernate()?;
            sandboxes.push(sandbox);
        }
        self.each(|point| {
            let sandbox = sandboxes.pop().context("one for each point")?;
            let client =
                lab.strike(point, false, |client| unanswered(client.delete(&sandbox.path(""))))?;
            gone(&client, &sandbox, &["deleted"])?;
            let others: Vec<&str> = sandboxes.iter().map(|other| other.id.as_str()).collect();
            lab.has(&others, &[])
        })?;
        lab.is_empty()
    }

    /// One sandbox that sleeps on however often it was nearly woken, and two that lose their files.
    fn wake(self, lab: &mut Lab) -> Result<()> {
        let mut sandboxes = Vec::new();
        for _ in 0..3 {
            let sandbox = furnish(lab.client()?.base()?)?;
            sandbox.hibernate()?;
            sandboxes.push(sandbox);
        }
        self.each(|point| {
            let sandbox = sandboxes.last().context("one sleeps")?.clone();
            let client = lab.strike(point, false, |client| {
                unanswered(client.post(&sandbox.path("/wake"), &Value::Null))
            })?;
            let lost = matches!(point, Point::FilesHidden | Point::WakeCleared);
            if lost {
                sandboxes.pop();
                gone(&client, &sandbox, &["server_crash"])?;
            }
            let asleep: Vec<&str> = sandboxes.iter().map(|one| one.id.as_str()).collect();
            lab.has(&asleep, &[])?;
            if point == Point::WakeJournalled {
                sandboxes.pop();
                whole(&client, &sandbox, 2)?;
            }
            Ok(())
        })?;
        lab.is_empty()
    }

    /// A tree whose children are asleep, so that there is something to keep.
    fn promote(self, lab: &mut Lab) -> Result<()> {
        let parent = furnish(lab.client()?.base()?)?;
        let children = parent.fork(2)?;
        for child in &children {
            child.hibernate()?;
        }
        parent.delete()?;
        let [winner, sibling] = &children[..] else { unreachable!("two were asked for") };
        self.each(|point| {
            let body = json!({ "cleanup_siblings": true });
            let client = lab.strike(point, false, |client| {
                unanswered(client.post(&winner.path("/promote"), &body))
            })?;
            if point == Point::EndCleared {
                gone(&client, sibling, &["deleted"])?;
                return lab.has(&[&winner.id], &[]);
            }
            lab.has(&[&winner.id, &sibling.id], &[])
        })?;
        whole(&lab.client()?, winner, 2)?;
        lab.is_empty()
    }

    /// A server that dies while it cleans up after another one.
    fn recover(self, lab: &mut Lab) -> Result<()> {
        let asleep = furnish(lab.client()?.base()?)?;
        asleep.hibernate()?;
        self.each(|point| {
            let running = lab.client()?.base()?;
            let client = lab.strike_the_next(point, false)?;
            gone(&client, &running, &["server_crash"])?;
            lab.has(&[&asleep.id], &[])
        })?;
        whole(&lab.client()?, &asleep, 2)?;
        lab.is_empty()
    }
}

/// Puts something into a sandbox that can be lost: on its disk, and in a process's memory.
pub fn furnish(sandbox: Sandbox) -> Result<Sandbox> {
    let line = format!("echo kept > /root/file; {}", holder::start());
    sandbox.output(&line)?;
    let held = sandbox.output(&holder::hold(7))?;
    ensure!(held == "7 1\n", "{held:?}");
    Ok(sandbox)
}

/// It has what was put into it, and was asked so often.
pub fn intact(client: &Client, sandbox: &Sandbox, asked: u32) -> Result<()> {
    let sandbox = sandbox.under(client);
    let found = sandbox.output(&format!("cat /root/file; {}", holder::say()))?;
    ensure!(found == format!("kept\n7 {asked}\n"), "{found:?}");
    Ok(())
}

/// The same; afterwards it is deleted.
fn whole(client: &Client, sandbox: &Sandbox, asked: u32) -> Result<()> {
    intact(client, sandbox, asked)?;
    let sandbox = sandbox.under(client);
    let deleted = sandbox.delete()?;
    ensure!(deleted.status == 204, "{}", deleted.text());
    Ok(())
}

/// Nothing of it is left but the reason of its end.
pub fn gone(client: &Client, sandbox: &Sandbox, reasons: &[&str]) -> Result<()> {
    let answer = client.get(&sandbox.path(""))?;
    ensure!(answer.status == 404, "{} {}", answer.status, answer.text());
    ended_for(client, &sandbox.id, reasons)
}

fn terminate(pid: u32) -> Result<()> {
    let status = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status()?;
    ensure!(status.success(), "there is no server to stop");
    Ok(())
}
