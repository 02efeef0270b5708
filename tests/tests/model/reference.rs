//! The reference: what every operation must answer and leave, without any I/O.
//!
//! ```text
//!                 pause              hibernate
//!      Running ◀────────▶ Paused ──────────────▶ Hibernated
//!         │     resume       │                       │  any use of the guest: Running
//!         └──────────────────┴── its machine is ─────┘
//!                                killed: Failed
//!      delete, expire: Gone
//! ```
//!
//! When the server is killed, a sandbox stays what it is if its machine outlives servers, and if it
//! is hibernated; all others are gone. What was under way was done or not, and nothing in between, or
//! was the end of it: [`Sandbox::after_crash`] lists the outcomes that are legal.

use std::collections::BTreeMap;

use crate::operation::{Act, Operation};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    Paused,
    Hibernated,
    /// Its machine died, and it tells why.
    Failed,
    Gone,
}

impl Life {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Hibernated => "hibernated",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }

    /// What it is under the next server; `outlives` says whether machines outlive theirs.
    fn after_crash(self, outlives: bool) -> Self {
        match self {
            Self::Hibernated => self,
            Self::Running | Self::Paused if outlives => self,
            _ => Self::Gone,
        }
    }
}

/// What is in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// On its disk.
    pub files: BTreeMap<usize, u64>,
    /// In the memory of a process: a value,
    pub held: u64,
    /// and how often it was asked for it. Nothing may be done twice.
    pub asked: u64,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub life: Life,
    pub content: Content,
    pub ttl: u64,
}

/// One snapshot: the content of one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub content: Content,
    pub there: bool,
}

/// Everything of one client. Numbers stay: what is gone is kept, so that it can be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub sandboxes: Vec<Sandbox>,
    pub snapshots: Vec<Snapshot>,
}

impl Model {
    /// Does an operation; what it must answer.
    pub fn does(&mut self, operation: &Operation) -> u16 {
        match operation {
            Operation::Create { ttl } => {
                self.sandboxes.push(Sandbox::new(Content::default(), *ttl));
                201
            }
            Operation::Restore { snapshot, ttl } => {
                let Snapshot { content, there } = self.snapshots[*snapshot].clone();
                if !there {
                    return 404;
                }
                self.sandboxes.push(Sandbox::new(content, *ttl));
                201
            }
            Operation::DeleteSnapshot { snapshot } => {
                let there = std::mem::take(&mut self.snapshots[*snapshot].there);
                if there { 204 } else { 404 }
            }
            Operation::On { sandbox, act } => self.acts(*sandbox, act),
            Operation::List | Operation::KillServer => 200,
        }
    }

    fn acts(&mut self, sandbox: usize, act: &Act) -> u16 {
        let (status, after) = self.sandboxes[sandbox].does(act);
        let Sandbox { content, ttl, .. } = after.clone();
        self.sandboxes[sandbox] = after;
        match act {
            Act::Snapshot if status == 201 => {
                self.snapshots.push(Snapshot { content, there: true });
            }
            Act::Fork { children } if status == 201 => {
                let child = Sandbox::new(content, ttl);
                self.sandboxes.extend(std::iter::repeat_n(child, *children));
            }
            _ => {}
        }
        status
    }

    /// Numbers of the sandboxes that are not gone.
    pub fn alive(&self) -> impl Iterator<Item = usize> {
        let numbered = self.sandboxes.iter().enumerate();
        numbered.filter(|(_, sandbox)| sandbox.life != Life::Gone).map(|(number, _)| number)
    }

    /// Numbers of the snapshots that there are.
    pub fn kept(&self) -> impl Iterator<Item = usize> {
        let numbered = self.snapshots.iter().enumerate();
        numbered.filter(|(_, snapshot)| snapshot.there).map(|(number, _)| number)
    }
}

impl Sandbox {
    /// A sandbox that was just made of `content`.
    pub fn new(content: Content, ttl: u64) -> Self {
        Self { life: Life::Running, content, ttl }
    }

    /// What an act must answer, and the sandbox after it.
    pub fn does(&self, act: &Act) -> (u16, Self) {
        let mut after = self.clone();
        let status = match (self.life, act) {
            (Life::Gone, _) => 404,
            (_, Act::Look) => 200,
            (_, Act::Delete) => {
                after.life = Life::Gone;
                204
            }
            (Life::Failed, _) => 410,
            (_, Act::KillMachine) => {
                after.life = Life::Failed;
                200
            }
            (_, Act::Expire) => {
                after.life = Life::Gone;
                200
            }
            (_, Act::SetTtl { ttl }) => {
                after.ttl = *ttl;
                200
            }
            (_, Act::Hibernate) => {
                after.life = Life::Hibernated;
                200
            }
            (_, Act::Wake) => {
                after.life = Life::Running;
                200
            }
            (_, Act::Resume) => {
                after.life = Life::Running;
                204
            }
            (Life::Hibernated, Act::Pause) => 409,
            (_, Act::Pause) => {
                after.life = Life::Paused;
                204
            }
            (life, Act::Snapshot | Act::Fork { .. }) => {
                after.life = if life == Life::Paused { life } else { Life::Running };
                201
            }
            (Life::Paused, _) => 409,
            (_, act) => {
                after.life = Life::Running;
                after.content.does(act)
            }
        };
        (status, after)
    }

    /// The lives that are legal when the server was killed while `act` was on its way, if one was.
    pub fn after_crash(&self, act: Option<&Act>, outlives: bool) -> Vec<Life> {
        let mut lives = vec![self.life.after_crash(outlives)];
        let mut add = |life| {
            if !lives.contains(&life) {
                lives.push(life);
            }
        };
        if let Some(act) = act {
            add(self.does(act).1.life.after_crash(outlives));
        }
        // A machine that is being copied is not taken over, and neither is one that has died.
        // One that is hibernated is woken for its copies.
        let ends = match act {
            Some(Act::Snapshot | Act::Fork { .. } | Act::KillMachine) => true,
            Some(Act::Hibernate) => self.life != Life::Hibernated,
            _ => false,
        };
        if ends {
            add(Life::Gone);
        }
        lives
    }
}

impl Content {
    /// What an act in the guest answers; changes what it changes.
    fn does(&mut self, act: &Act) -> u16 {
        match act {
            Act::Check => self.asked += 1,
            Act::Hold { value } => {
                self.asked += 1;
                self.held = *value;
            }
            Act::WriteFile { file, value } => {
                self.files.insert(*file, *value);
            }
            Act::ReadFile { file } if !self.files.contains_key(file) => return 404,
            _ => {}
        }
        200
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(life: Life) -> Sandbox {
        Sandbox { life, ..Sandbox::new(Content::default(), 60) }
    }

    /// Every life with the answer to an act and the life after it.
    fn table(act: &Act) -> Vec<(u16, Life)> {
        use Life::*;
        let lives = [Running, Paused, Hibernated, Failed, Gone];
        let done = lives.map(|life| sandbox(life).does(act));
        done.iter().map(|(status, after)| (*status, after.life)).collect()
    }

    #[test]
    fn answers_are_those_of_the_documented_interface() {
        use Life::*;
        let (failed, gone) = ((410, Failed), (404, Gone));
        let rows = [
            (Act::Check, [(200, Running), (409, Paused), (200, Running), failed, gone]),
            (Act::Pause, [(204, Paused), (204, Paused), (409, Hibernated), failed, gone]),
            (Act::Resume, [(204, Running), (204, Running), (204, Running), failed, gone]),
            (
                Act::Hibernate,
                [(200, Hibernated), (200, Hibernated), (200, Hibernated), failed, gone],
            ),
            (Act::Wake, [(200, Running), (200, Running), (200, Running), failed, gone]),
            (Act::Snapshot, [(201, Running), (201, Paused), (201, Running), failed, gone]),
            (
                Act::Fork { children: 1 },
                [(201, Running), (201, Paused), (201, Running), failed, gone],
            ),
            (
                Act::SetTtl { ttl: 9 },
                [(200, Running), (200, Paused), (200, Hibernated), failed, gone],
            ),
            (Act::Look, [(200, Running), (200, Paused), (200, Hibernated), (200, Failed), gone]),
            (Act::Delete, [(204, Gone), (204, Gone), (204, Gone), (204, Gone), gone]),
        ];
        for (act, row) in rows {
            assert_eq!(table(&act), row, "{act:?}");
        }
    }

    #[test]
    fn what_is_in_the_guest_changes_only_where_the_guest_is_used() {
        let running = sandbox(Life::Running);
        let write = Act::WriteFile { file: 1, value: 7 };
        assert_eq!(running.does(&Act::ReadFile { file: 1 }).0, 404);
        let written = running.does(&write).1;
        assert_eq!(written.does(&Act::ReadFile { file: 1 }).0, 200);
        let held = written.does(&Act::Hold { value: 3 }).1.does(&Act::Check).1;
        assert_eq!((held.content.held, held.content.asked), (3, 2));
        assert_eq!(held.content.files, BTreeMap::from([(1, 7)]));
        let paused = held.does(&Act::Pause).1;
        assert_eq!(paused.does(&Act::Hold { value: 4 }), (409, paused.clone()));
        let asleep = paused.does(&Act::Hibernate).1;
        assert_eq!(asleep.content, held.content);
        assert_eq!(asleep.does(&write).1.life, Life::Running);
    }

    #[test]
    fn copies_begin_with_the_content_of_their_instant_and_go_their_own_way() {
        let mut model = Model::default();
        let on = |sandbox, act| Operation::On { sandbox, act };
        let hold = |value| Act::Hold { value };
        assert_eq!(model.does(&Operation::Create { ttl: 50 }), 201);
        model.does(&on(0, hold(1)));
        assert_eq!(model.does(&on(0, Act::Snapshot)), 201);
        model.does(&on(0, hold(2)));
        assert_eq!(model.does(&on(0, Act::Fork { children: 2 })), 201);
        model.does(&on(1, hold(3)));
        let restore = Operation::Restore { snapshot: 0, ttl: 60 };
        assert_eq!(model.does(&restore), 201);
        let held: Vec<u64> = model.sandboxes.iter().map(|sandbox| sandbox.content.held).collect();
        assert_eq!(held, [2, 3, 2, 1]);
        assert_eq!((model.sandboxes[2].ttl, model.sandboxes[3].ttl), (50, 60));
        let delete = Operation::DeleteSnapshot { snapshot: 0 };
        assert_eq!((model.does(&delete), model.does(&delete)), (204, 404));
        assert_eq!(model.does(&restore), 404);
        assert_eq!(model.sandboxes.len(), 4);
    }

    #[test]
    fn a_crash_keeps_what_is_files_and_what_outlives_it() {
        use Life::*;
        let check = |life, act: Option<Act>, outlives, lives: &[Life]| {
            let found = sandbox(life).after_crash(act.as_ref(), outlives);
            assert_eq!(found, lives, "{life:?} {act:?} {outlives}");
        };
        for life in [Running, Paused, Failed, Gone] {
            check(life, None, false, &[Gone]);
        }
        check(Running, Some(Act::Hibernate), false, &[Gone, Hibernated]);
        check(Running, Some(Act::Check), false, &[Gone]);
        check(Hibernated, Some(Act::Check), false, &[Hibernated, Gone]);
        for life in [Running, Paused] {
            check(life, None, true, &[life]);
            check(life, Some(Act::Delete), true, &[life, Gone]);
            check(life, Some(Act::Snapshot), true, &[life, Gone]);
            check(life, Some(Act::Hibernate), true, &[life, Hibernated, Gone]);
        }
        check(Failed, None, true, &[Gone]);
        check(Running, Some(Act::Pause), true, &[Running, Paused]);
        check(Hibernated, Some(Act::Check), true, &[Hibernated, Running]);
        check(Hibernated, Some(Act::Snapshot), true, &[Hibernated, Running, Gone]);
        check(Hibernated, Some(Act::Hibernate), true, &[Hibernated]);
        for outlives in [false, true] {
            check(Hibernated, None, outlives, &[Hibernated]);
            check(Hibernated, Some(Act::Look), outlives, &[Hibernated]);
            check(Hibernated, Some(Act::Delete), outlives, &[Hibernated, Gone]);
        }
    }
}
