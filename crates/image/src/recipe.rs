//! Recipes: what a template is made of.
//!
//! Invariant: a [`Recipe`] has passed [`Recipe::parse`]. Its package names and suite cannot be
//! taken for an option, a path or a piece of shell by the programs they are handed to. Only its
//! `prepare`, `preload` and `warm_up` lines are shell, and those run inside the tree or guest.

use pandastack_types::{InvalidSize, Size, TemplateName};
use serde::Deserialize;

/// The recipes that come with the program.
const EMBEDDED: [&str; 2] = [
    include_str!("../../../templates/base.toml"),
    include_str!("../../../templates/code-interpreter.toml"),
];

/// A checked recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub(crate) name: TemplateName,
    pub(crate) aliases: Vec<TemplateName>,
    pub(crate) description: String,
    pub(crate) tools: Vec<String>,
    /// Debian release.
    pub(crate) suite: String,
    /// Sorted and without repetition, so that their order in the file does not matter.
    pub(crate) packages: Vec<String>,
    /// Shell lines run once inside the tree while it is built.
    pub(crate) prepare: Vec<String>,
    pub(crate) size: Size,
    pub(crate) preload: Vec<String>,
    pub(crate) warm_up: Vec<String>,
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: TemplateName,
    #[serde(default)]
    aliases: Vec<TemplateName>,
    description: String,
    #[serde(default)]
    tools: Vec<String>,
    suite: String,
    packages: Vec<String>,
    #[serde(default)]
    prepare: Vec<String>,
    cpu: i64,
    memory_mb: i64,
    disk_mb: i64,
    #[serde(default)]
    preload: Vec<String>,
    #[serde(default)]
    warm_up: Vec<String>,
}

impl Recipe {
    /// Reads and checks a recipe file.
    pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
        let raw: Raw = toml::from_str(text)?;
        if raw.suite.is_empty() || !raw.suite.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(RecipeError::Suite(raw.suite));
        }
        if let Some(bad) = raw.packages.iter().find(|name| !is_package_name(name)) {
            return Err(RecipeError::Package(bad.clone()));
        }
        // One line is one command: it is handed over with line ends as separators.
        let lines = raw.prepare.iter().chain(&raw.preload).chain(&raw.warm_up);
        if let Some(bad) = lines.into_iter().find(|line| !is_shell_line(line)) {
            return Err(RecipeError::Line(bad.clone()));
        }
        let mut packages = raw.packages;
        packages.sort();
        packages.dedup();
        Ok(Recipe {
            name: raw.name,
            aliases: raw.aliases,
            description: raw.description,
            tools: raw.tools,
            suite: raw.suite,
            packages,
            prepare: raw.prepare,
            size: Size::new(raw.cpu, raw.memory_mb, raw.disk_mb)?,
            preload: raw.preload,
            warm_up: raw.warm_up,
        })
    }

    /// The recipes that come with the program.
    pub fn embedded() -> Result<Vec<Recipe>, RecipeError> {
        EMBEDDED.into_iter().map(Recipe::parse).collect()
    }

    /// The template's name.
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// Other names that lead to it.
    pub fn aliases(&self) -> &[TemplateName] {
        &self.aliases
    }

    /// vCPUs, memory and disk of a machine when nothing else is asked for.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Whether `name` is its name or one of its aliases.
    pub fn answers_to(&self, name: &TemplateName) -> bool {
        self.name == *name || self.aliases.contains(name)
    }
}

/// A Debian package name. A trailing `-` is refused although Debian's policy allows it: to apt
/// it means "remove".
fn is_package_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.len() >= 2
        && bytes.first().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || matches!(b, b'+' | b'.' | b'-'))
        && !name.ends_with('-')
}

fn is_shell_line(line: &str) -> bool {
    !line.trim().is_empty() && !line.contains(['\n', '\r', '\0'])
}

/// Why a recipe was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Not TOML, or not the fields of a recipe.
    #[error("the recipe is not valid")]
    Toml(#[from] toml::de::Error),
    /// Not a release name.
    #[error("{0:?} is not the name of a Debian release")]
    Suite(String),
    /// Not a package name.
    #[error("{0:?} is not the name of a Debian package")]
    Package(String),
    /// A shell line that is empty or more than one line.
    #[error("{0:?} is not one line of shell")]
    Line(String),
    /// vCPUs, memory or disk out of range.
    #[error("the recipe's size is not possible")]
    Size(#[from] InvalidSize),
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "t"
        aliases = ["u"]
        description = "d"
        suite = "trixie"
        packages = ["g++", "bash", "bash", "libc6"]
        cpu = 1
        memory_mb = 512
        disk_mb = 2048
        warm_up = ["echo hi"]
    "#;

    #[test]
    fn a_good_recipe_is_normalised() {
        let recipe = Recipe::parse(GOOD).unwrap();
        assert_eq!(recipe.packages, ["bash", "g++", "libc6"]);
        assert_eq!(recipe.size, Size { cpu: 1, memory_mb: 512, disk_mb: 2048 });
        assert!(recipe.answers_to(&"t".parse().unwrap()));
        assert!(recipe.answers_to(&"u".parse().unwrap()));
        assert!(!recipe.answers_to(&"d".parse().unwrap()));
    }

    #[test]
    fn embedded_recipes_are_good_and_their_names_unique() {
        let recipes = Recipe::embedded().unwrap();
        let mut names: Vec<_> =
            recipes.iter().flat_map(|r| std::iter::once(&r.name).chain(&r.aliases)).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        for expected in ["base", "ubuntu-24.04", "code-interpreter", "code-interpreter-v1"] {
            assert!(names.iter().any(|name| name.as_str() == expected), "{expected}");
        }
    }

    #[test]
    fn hostile_package_names_are_refused() {
        for bad in [
            "",
            "a",
            "-y",
            "--yes",
            "bash-",
            "../x",
            "/etc/passwd",
            "./x.deb",
            "a b",
            "a,b",
            "a;reboot",
            "$(reboot)",
            "`x`",
            "a\nb",
            "Bash",
            "?essential",
            "a=1",
            "a/sid",
            "a:arm64",
        ] {
            assert!(!is_package_name(bad), "{bad:?}");
            let text = GOOD.replace("\"libc6\"", &format!("{bad:?}"));
            assert!(matches!(Recipe::parse(&text), Err(RecipeError::Package(_))), "{bad:?}");
        }
        for good in ["bash", "g++", "libstdc++6", "python3.13", "0ad", "linux-image-6.1"] {
            assert!(is_package_name(good), "{good:?}");
        }
    }

    #[test]
    fn everything_else_is_checked_too() {
        for (from, to) in [
            ("cpu = 1", "cpu = 0"),
            ("memory_mb = 512", "memory_mb = -1"),
            ("disk_mb = 2048", "disk_mb = 1"),
            ("\"trixie\"", "\"trixie; reboot\""),
            ("\"trixie\"", "\"\""),
            ("\"echo hi\"", "\"echo\\nhi\""),
            ("\"echo hi\"", "\" \""),
            ("name = \"t\"", "name = \"../t\""),
            ("cpu = 1", "cpu = 1\nextra = 1"),
        ] {
            assert!(Recipe::parse(&GOOD.replace(from, to)).is_err(), "{to}");
        }
    }
}
