//! Ids as people type them: as much of one as no other shares.

use std::fmt::Display;

/// The one of `ids` that begins with `text`; they are those of all things of this `kind`.
pub fn meant<Id: Copy + Display>(
    kind: &str,
    text: &str,
    ids: impl Iterator<Item = Id>,
) -> anyhow::Result<Id> {
    let prefix = text.to_ascii_lowercase();
    let fitting: Vec<_> = ids.filter(|id| id.to_string().starts_with(&prefix)).collect();
    match fitting.as_slice() {
        _ if prefix.is_empty() => anyhow::bail!("the id of the {kind} is empty"),
        [id] => Ok(*id),
        [] => anyhow::bail!("there is no {kind} {text:?}; `pandastack {kind} ls` lists them"),
        several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            anyhow::bail!("{text:?} could be any of {}", several.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_must_mean_one() {
        let meant = |text| meant("sandbox", text, ["1b9d-6bcd", "1b9e-0000"].into_iter());
        assert_eq!(meant("1B9D").unwrap(), "1b9d-6bcd");
        assert!(meant("1b9").unwrap_err().to_string().contains("could be any of"));
        for bad in ["2", "", "*"] {
            assert!(meant(bad).is_err(), "{bad:?}");
        }
    }
}
