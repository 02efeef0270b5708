//! Labels: what clients may set, what children inherit, and what only the server writes.

use std::collections::BTreeMap;

use pandastack_types::SandboxId;

use crate::error::InvalidRequest;

/// Labels of a sandbox.
pub(crate) type Metadata = BTreeMap<String, String>;

const MAX_ENTRIES: usize = 64;
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 4 << 10;

const PARENT: &str = "fork_parent_id";
const TREE: &str = "fork_tree_id";
const INDEX: &str = "fork_index";
const ROLE: &str = "fork_tree_role";
/// What the server says about where a sandbox comes from. Clients act on it, up to deleting a
/// whole tree, so it is never taken from a request nor from a parent.
const OURS: [&str; 4] = [PARENT, TREE, INDEX, ROLE];

/// The labels of a request, without those that are not a client's to set.
pub(crate) fn asked(mut metadata: Metadata) -> Result<Metadata, InvalidRequest> {
    metadata.retain(|key, _| !OURS.contains(&key.as_str()));
    check(&metadata)?;
    Ok(metadata)
}

/// The labels of a child before its parent is named: the parent's, overlaid by the request's.
pub(crate) fn inherited(parent: &Metadata, request: Metadata) -> Result<Metadata, InvalidRequest> {
    let mut metadata = parent.clone();
    metadata.extend(request);
    asked(metadata)
}

/// Says where a child comes from: its parent and, if it is one of a tree, its place there.
pub(crate) fn descend(metadata: &mut Metadata, parent: SandboxId, tree: Option<(&str, usize)>) {
    metadata.insert(PARENT.to_owned(), parent.to_string());
    if let Some((id, index)) = tree {
        metadata.insert(TREE.to_owned(), id.to_owned());
        metadata.insert(INDEX.to_owned(), index.to_string());
        metadata.insert(ROLE.to_owned(), "child".to_owned());
    }
}

/// The tree that a sandbox is a child of.
pub(crate) fn tree(metadata: &Metadata) -> Option<&str> {
    metadata.get(TREE).map(String::as_str)
}

/// Its place there.
pub(crate) fn index(metadata: &Metadata) -> Option<usize> {
    metadata.get(INDEX)?.parse().ok()
}

fn check(metadata: &Metadata) -> Result<(), InvalidRequest> {
    let field = |text| Err(InvalidRequest::Field(text));
    if metadata.len() > MAX_ENTRIES {
        return field(format!("metadata has more than {MAX_ENTRIES} entries"));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.len() > MAX_KEY {
            return field(format!("a metadata key must be 1 to {MAX_KEY} bytes"));
        }
        if value.len() > MAX_VALUE {
            return field(format!("a metadata value must be at most {MAX_VALUE} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_request_wins_over_the_parent_and_the_server_over_both() {
        let parent = map(&[("a", "1"), ("b", "1"), (TREE, "old"), (INDEX, "7")]);
        let request = map(&[("b", "2"), (PARENT, "forged"), (ROLE, "root")]);
        let mut child = inherited(&parent, request).unwrap();
        assert_eq!(child, map(&[("a", "1"), ("b", "2")]));
        let id = SandboxId::random();
        descend(&mut child, id, Some(("new", 3)));
        let text = id.to_string();
        let place = [(PARENT, text.as_str()), (TREE, "new"), (INDEX, "3"), (ROLE, "child")];
        assert_eq!(child, map(&[&[("a", "1"), ("b", "2")][..], &place].concat()));
    }

    #[test]
    fn the_limits_hold_for_the_sum() {
        let numbered = |range: std::ops::Range<u32>| -> Metadata {
            range.map(|number| (number.to_string(), String::new())).collect()
        };
        assert!(inherited(&numbered(0..40), numbered(30..64)).is_ok());
        assert!(inherited(&numbered(0..40), numbered(40..65)).is_err());
        assert!(asked(map(&[("", "x")])).is_err());
    }
}
