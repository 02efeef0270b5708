//! What is in a guest: files, and a process with a value in its memory.

use anyhow::{Context, Result, ensure};
use pandastack_tests::holder;

use crate::reference::Content;

/// Where the files are.
pub const DIR: &str = "/root/model";

/// Starts the process, in a guest without files.
pub fn start() -> String {
    format!("mkdir {DIR} && {}", holder::start())
}

/// Has every file read, and then the process say what it holds.
pub fn check() -> String {
    let files = format!("cd {DIR}; for f in *; do [ -e $f ] && echo \"file $f $(cat $f)\"; done");
    format!("{files}; {}", holder::say())
}

/// Reads what [`check`] or [`holder::hold`] printed.
pub fn read(text: &str) -> Result<Content> {
    let mut content = Content::default();
    let mut lines: Vec<&str> = text.lines().collect();
    let last = lines.pop().unwrap_or_default();
    let (held, asked) = last.split_once(' ').with_context(|| format!("{text:?}"))?;
    (content.held, content.asked) = (held.parse()?, asked.parse()?);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() == 3 && words[0] == "file", "{text:?}");
        content.files.insert(words[1].parse()?, words[2].parse()?);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_a_guest_says_is_read_and_nothing_else() {
        let content = Content { files: BTreeMap::from([(0, 5), (2, 6)]), held: 7, asked: 8 };
        assert_eq!(read("file 0 5\nfile 2 6\n7 8\n").unwrap(), content);
        for text in ["", "7", "file 0\n7 8\n", "file 0 5\n", "oops\n7 8\n"] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
