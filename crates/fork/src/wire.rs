//! Datagrams, in the byte order of the host: both ends are on it.
#![forbid(unsafe_code)]

use crate::MAX_DESCRIPTORS;

/// Begins every datagram; the last byte is the version.
const MAGIC: u32 = u32::from_le_bytes(*b"PFK\x01");

/// Most entries of each list of a request.
const MAX_ENTRIES: usize = MAX_DESCRIPTORS;

/// A file, wherever and however often it is open: `st_dev` and `st_ino` of stat(2). Sockets and
/// pipes have one as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Every descriptor of `file` becomes a copy of the attached descriptor number `with`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// What the parent has open.
    pub file: FileId,
    /// Index into the attached descriptors.
    pub with: u8,
}

/// A list without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct List<T> {
    items: [T; MAX_ENTRIES],
    len: usize,
}

impl<T: Copy + Default> List<T> {
    fn new() -> Self {
        Self { items: [T::default(); MAX_ENTRIES], len: 0 }
    }

    fn push(&mut self, item: T) -> bool {
        let free = self.items.get_mut(self.len);
        if let Some(slot) = free {
            *slot = item;
            self.len += 1;
            return true;
        }
        false
    }

    fn as_slice(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or(&[])
    }
}

/// Asks for one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    replace: List<Replacement>,
    freeze: List<Replacement>,
    keep: List<FileId>,
    /// The attached descriptors from here on, up to `groups_from`, are control files that the
    /// keeper leaves the parent's cgroup through, by writing `0` to them.
    pub keeper_groups_from: u8,
    /// Those from here on are control files that the child joins its own cgroup through.
    pub groups_from: u8,
    /// Whether the child may be read from outside, by an owner that is not root: a copy that never
    /// runs, to be written to disk.
    pub readable: bool,
}

impl Request {
    /// Bytes of the longest request.
    pub const MAX_BYTES: usize = 16 + MAX_ENTRIES * (17 + 17 + 16);

    /// A request without any entry.
    pub fn new() -> Self {
        Self {
            replace: List::new(),
            freeze: List::new(),
            keep: List::new(),
            keeper_groups_from: 0,
            groups_from: 0,
            readable: false,
        }
    }

    /// Replaces a file in the child. False when the list is full.
    #[must_use]
    pub fn add_replace(&mut self, file: FileId, with: u8) -> bool {
        self.replace.push(Replacement { file, with })
    }

    /// Replaces a file in the parent as well as in the child: a disk layer that nobody writes to
    /// from now on. False when the list is full.
    #[must_use]
    pub fn add_freeze(&mut self, file: FileId, with: u8) -> bool {
        self.freeze.push(Replacement { file, with })
    }

    /// Lets the child keep a file. False when the list is full.
    #[must_use]
    pub fn add_keep(&mut self, file: FileId) -> bool {
        self.keep.push(file)
    }

    /// What the child has instead of the parent's own files.
    pub fn replace(&self) -> &[Replacement] {
        self.replace.as_slice()
    }

    /// What both have instead of files that were the parent's own until now.
    pub fn freeze(&self) -> &[Replacement] {
        self.freeze.as_slice()
    }

    /// What both have.
    pub fn keep(&self) -> &[FileId] {
        self.keep.as_slice()
    }

    /// Writes the datagram and returns its length.
    pub fn encode(&self, out: &mut [u8; Self::MAX_BYTES]) -> usize {
        let mut writer = Writer { out, at: 0 };
        writer.put(&MAGIC.to_ne_bytes());
        let counts = [self.replace.len, self.freeze.len, self.keep.len];
        for count in counts {
            writer.put(&[count as u8]);
        }
        writer.put(&[self.keeper_groups_from, self.groups_from, self.readable.into()]);
        for list in [self.replace(), self.freeze()] {
            for entry in list {
                writer.file(entry.file);
                writer.put(&[entry.with]);
            }
        }
        for file in self.keep() {
            writer.file(*file);
        }
        writer.at
    }

    /// Reads a datagram that came with `attached` descriptors.
    pub fn decode(bytes: &[u8], attached: usize) -> Option<Self> {
        let mut reader = Reader { bytes };
        if reader.u32()? != MAGIC {
            return None;
        }
        let counts = [reader.u8()?, reader.u8()?, reader.u8()?];
        let (keeper_groups_from, groups_from) = (reader.u8()?, reader.u8()?);
        let readable = reader.u8()? != 0;
        let mut request = Self { keeper_groups_from, groups_from, readable, ..Self::new() };
        if keeper_groups_from > groups_from || usize::from(groups_from) > attached {
            return None;
        }
        for (index, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let file = FileId { device: reader.u64()?, inode: reader.u64()? };
                let kept = index == 2;
                let with = if kept { 0 } else { reader.u8()? };
                if !kept && usize::from(with) >= attached {
                    return None;
                }
                let taken = match index {
                    0 => request.add_replace(file, with),
                    1 => request.add_freeze(file, with),
                    _ => request.add_keep(file),
                };
                if !taken {
                    return None;
                }
            }
        }
        reader.bytes.is_empty().then_some(request)
    }
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

/// A step of a fork, so that a failure can say where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Reading the request.
    Request = 1,
    /// Finding and stopping the other threads.
    Park,
    /// Accounting for every descriptor.
    Survey,
    /// Replacing frozen files in the parent.
    Freeze,
    /// Making the keeper in its namespaces.
    Keeper,
    /// Joining the cgroup.
    Groups,
    /// Giving up the capabilities that a new user namespace brings.
    Privileges,
    /// Making the child.
    Child,
    /// Putting the child's descriptors in place.
    Descriptors,
    /// Starting the child's threads.
    Threads,
}

impl Step {
    const ALL: [Step; 10] = [
        Step::Request,
        Step::Park,
        Step::Survey,
        Step::Freeze,
        Step::Keeper,
        Step::Groups,
        Step::Privileges,
        Step::Child,
        Step::Descriptors,
        Step::Threads,
    ];

    fn from_number(number: u8) -> Option<Step> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// Microseconds that the steps of a fork took in the parent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Stopping the other threads.
    pub park: u32,
    /// Accounting for descriptors.
    pub survey: u32,
    /// Making keeper and child: most of it is the copy of page tables.
    pub clone: u32,
}

/// Outcome of a fork, or of a child's own set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done. A parent attaches the child's pidfd; a child says it once all of its threads are
    /// there.
    Done(Steps),
    /// Not done. A parent goes on as if it had not been asked; a child ends.
    Failed {
        /// Where.
        step: Step,
        /// Why: errno(3), or 0 where no system call failed.
        errno: i32,
        /// The descriptor or thread it was about, or -1.
        subject: i32,
    },
}

impl Answer {
    /// Bytes of every answer.
    pub const BYTES: usize = 20;

    /// The datagram.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        let mut writer = Writer { out: &mut out, at: 0 };
        writer.put(&MAGIC.to_ne_bytes());
        let (step, words) = match *self {
            Answer::Done(steps) => (0, [steps.park, steps.survey, steps.clone]),
            Answer::Failed { step, errno, subject } => {
                (step as u32, [errno as u32, subject as u32, 0])
            }
        };
        writer.put(&step.to_ne_bytes());
        for word in words {
            writer.put(&word.to_ne_bytes());
        }
        out
    }

    /// Reads a datagram.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes };
        if reader.u32()? != MAGIC {
            return None;
        }
        let step = reader.u32()?;
        let [a, b, c] = [reader.u32()?, reader.u32()?, reader.u32()?];
        if !reader.bytes.is_empty() {
            return None;
        }
        match u8::try_from(step).ok()? {
            0 => Some(Answer::Done(Steps { park: a, survey: b, clone: c })),
            number => Some(Answer::Failed {
                step: Step::from_number(number)?,
                errno: a as i32,
                subject: b as i32,
            }),
        }
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    /// What does not fit is left out; the buffers are as long as the longest message.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if let Some(space) = self.out.get_mut(self.at..end) {
            space.copy_from_slice(bytes);
            self.at = end;
        }
    }

    fn file(&mut self, file: FileId) {
        self.put(&file.device.to_ne_bytes());
        self.put(&file.inode.to_ne_bytes());
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;

    use super::*;

    fn file(inode: u64) -> FileId {
        FileId { device: 7, inode }
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            replace in prop::collection::vec((any::<u64>(), 0u8..20), 0..40),
            freeze in prop::collection::vec((any::<u64>(), 0u8..20), 0..40),
            keep in prop::collection::vec(any::<u64>(), 0..40),
            keeper_groups_from in 0u8..=10, groups_from in 10u8..=20,
            readable in any::<bool>(),
        ) {
            let mut request =
                Request { keeper_groups_from, groups_from, readable, ..Request::new() };
            for (inode, with) in replace {
                prop_assert!(request.add_replace(file(inode), with));
            }
            for (inode, with) in freeze {
                prop_assert!(request.add_freeze(file(inode), with));
            }
            for inode in keep {
                prop_assert!(request.add_keep(file(inode)));
            }
            let mut bytes = [0; Request::MAX_BYTES];
            let len = request.encode(&mut bytes);
            prop_assert_eq!(Request::decode(&bytes[..len], 20), Some(request));
            prop_assert_eq!(Request::decode(&bytes[..len - 1], 20), None, "truncated");
        }

        #[test]
        fn noise_is_never_more_than_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200), attached in 0usize..4,
        ) {
            if let Some(request) = Request::decode(&bytes, attached) {
                let entries = request.replace().iter().chain(request.freeze());
                prop_assert!(entries.into_iter().all(|e| usize::from(e.with) < attached));
            }
            let _ = Answer::decode(&bytes);
        }
    }

    #[test]
    fn full_lists_fit_and_do_not_grow() {
        let mut request = Request::new();
        for inode in 0..MAX_ENTRIES as u64 {
            assert!(request.add_replace(file(inode), 0) && request.add_freeze(file(inode), 0));
            assert!(request.add_keep(file(inode)));
        }
        assert!(!request.add_keep(file(0)));
        let mut bytes = [0; Request::MAX_BYTES];
        let len = request.encode(&mut bytes);
        assert_eq!(Request::decode(&bytes[..len], 1), Some(request));
    }

    #[test]
    fn descriptors_that_did_not_come_are_refused() {
        let mut request = Request::new();
        assert!(request.add_replace(file(1), 3));
        let mut bytes = [0; Request::MAX_BYTES];
        let len = request.encode(&mut bytes);
        assert!(Request::decode(&bytes[..len], 3).is_none());
        assert!(Request::decode(&bytes[..len], 4).is_some());
    }

    #[test]
    fn answers_survive_the_wire() {
        let done = Answer::Done(Steps { park: 1, survey: 2, clone: u32::MAX });
        assert_eq!(Answer::decode(&done.encode()), Some(done));
        for step in Step::ALL {
            let failed = Answer::Failed { step, errno: 11, subject: -1 };
            assert_eq!(Answer::decode(&failed.encode()), Some(failed));
        }
        let mut foreign = done.encode();
        foreign[4] = 200;
        assert_eq!(Answer::decode(&foreign), None);
    }
}
