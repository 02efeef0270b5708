//! The server is killed after each step of everything it does, and the next one finds exactly one of
//! the two outcomes that are legal: as before, or as after. And nothing else is left: no process, no
//! file, no socket, no control group and no record too many.
//!
//! The program under test is one with fault points (`pandastack_sandbox::fault`): a test brings a
//! server to the state that it needs, names the point in a file, and does the operation. A point
//! that the operation does not come to fails the test, and so does one that no operation has.
//!
//! What has a machine ends with its server here, unless its test is about what does not; what is
//! files is there again, whole: a file on the disk and a value in the memory of a process are
//! compared.

mod lab;
mod steps;
mod survivors;
mod volumes;

use std::collections::BTreeSet;

use anyhow::Result;
use pandastack_sandbox::fault::Point;

use steps::Step;

#[test]
fn every_point_is_one_of_some_operation() {
    let reached: BTreeSet<&str> =
        Step::ALL.iter().flat_map(|step| step.points()).map(|point| point.name()).collect();
    let all: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(reached, all);
}

macro_rules! matrix {
    ($($name:ident: $step:ident,)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                Step::$step.run()
            }
        )*

        #[test]
        fn every_operation_has_a_test() {
            assert_eq!([$(Step::$step),*], Step::ALL);
        }
    };
}

matrix! {
    killed_in_a_create: Create,
    killed_in_a_delete: Delete,
    killed_in_a_delete_of_files: DeleteAsleep,
    killed_when_a_machine_died: Die,
    killed_in_a_pause: Pause,
    killed_in_a_resume: Resume,
    killed_in_a_change_of_limits: Limit,
    killed_in_a_snapshot: Snapshot,
    killed_in_a_delete_of_a_snapshot: DeleteSnapshot,
    killed_in_a_fork: Fork,
    killed_in_a_hibernation: Hibernate,
    killed_in_a_wake: Wake,
    killed_in_a_promotion: Promote,
    killed_in_a_stop: Stop,
    killed_in_a_recovery: Recover,
    killed_while_it_takes_a_machine_over: Adopt,
    killed_while_it_makes_a_volume: MakeVolume,
    killed_in_a_create_with_a_volume: CreateWithVolume,
    killed_in_a_delete_with_a_volume: DeleteWithVolume,
    killed_in_a_delete_of_a_volume: DeleteVolume,
}
