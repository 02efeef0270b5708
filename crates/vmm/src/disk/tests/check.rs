//! What `qemu-img check` does, for hosts without it: counts who names each cluster of an image and
//! compares with its reference counts. Shares no code with what it checks.

use std::collections::HashMap;
use std::path::Path;

const CLUSTER: usize = 65536;

/// What is wrong with an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters that are named more often than they are counted, named twice, or outside.
    pub errors: usize,
    /// Clusters that are counted and not named: lost room, no danger.
    pub leaks: usize,
}

pub fn check(path: &Path) -> Report {
    let image = std::fs::read(path).unwrap();
    let u64_at = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let table = |at: u64| (0..CLUSTER / 8).map(move |i| u64_at(at as usize + 8 * i));
    let offset = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let l1_entries = u32::from_be_bytes(image[36..40].try_into().unwrap()) as usize;
    let (l1, refcounts) = (u64_at(40), u64_at(48));

    let mut named: HashMap<u64, usize> = HashMap::new();
    let mut name = |at: u64| *named.entry(at).or_default() += 1;
    [0, l1, refcounts].into_iter().for_each(&mut name);
    for block in table(refcounts).filter(|block| *block != 0) {
        name(block);
    }
    for i in 0..l1_entries {
        let l2 = offset(u64_at(l1 as usize + 8 * i));
        if l2 != 0 {
            name(l2);
            table(l2).map(offset).filter(|cluster| *cluster != 0).for_each(&mut name);
        }
    }

    let mut report = Report::default();
    let blocks: Vec<u64> = table(refcounts).collect();
    let count = |cluster: usize| match blocks[cluster / (CLUSTER / 2)] {
        0 => 0,
        block => {
            let at = block as usize + 2 * (cluster % (CLUSTER / 2));
            usize::from(u16::from_be_bytes(image[at..at + 2].try_into().unwrap()))
        }
    };
    for (at, names) in &named {
        let (at, cluster) = (*at as usize, *at as usize / CLUSTER);
        let inside = at.is_multiple_of(CLUSTER) && at + CLUSTER <= image.len();
        report.errors += usize::from(!inside || *names != 1 || count(cluster) != 1);
    }
    report.leaks = (0..image.len().div_ceil(CLUSTER))
        .filter(|cluster| count(*cluster) > 0 && !named.contains_key(&((cluster * CLUSTER) as u64)))
        .count();
    report
}
