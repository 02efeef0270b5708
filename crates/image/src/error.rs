//! What can go wrong with templates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pandastack_engine::EngineError;
use pandastack_types::TemplateName;

use crate::build::MissingProgram;
use crate::recipe::RecipeError;

/// What can go wrong with templates.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An embedded recipe is not valid.
    #[error("a recipe that comes with the program is not valid")]
    Recipe(#[from] RecipeError),
    /// Programs that a build needs are not installed.
    #[error("building a template needs programs that are missing: {}\n  {}", names(.0), apt_line(.0))]
    MissingPrograms(Vec<MissingProgram>),
    /// The root file system could not be made.
    #[error("cannot build the root of template {template}; the end of {}:\n{tail}", .log.display())]
    Build {
        /// The template.
        template: TemplateName,
        /// The whole output.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The disk that the data directory is on filled up.
    #[error("the disk is full, so template {template} was not built; its log is {}", .log.display())]
    DiskFull {
        /// The template.
        template: TemplateName,
        /// The whole output.
        log: PathBuf,
    },
    /// The first boot or the snapshot failed.
    #[error("cannot bake template {template}; the end of {}:\n{tail}", .log.display())]
    Bake {
        /// The template.
        template: TemplateName,
        /// Everything the engine said.
        log: PathBuf,
        /// Its last lines.
        tail: String,
        /// The engine's error.
        #[source]
        source: Box<EngineError>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// Verb, such as `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A published directory is damaged.
    #[error("{} is damaged; remove that directory to have it made again", .0.display())]
    Damaged(PathBuf),
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pruning while another process uses the templates.
    #[error("another process uses these templates; stop it first")]
    InUse,
    /// A build failed, for everyone who waited for it.
    #[error(transparent)]
    Shared(Arc<ImageError>),
}

impl ImageError {
    /// The error itself, whether or not the caller shared the build that failed. Match on this.
    pub fn cause(&self) -> &ImageError {
        match self {
            ImageError::Shared(error) => error.cause(),
            error => error,
        }
    }

    /// Names the file of a failed operation; for `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| ImageError::File { action, path, source }
    }
}

fn names(missing: &[MissingProgram]) -> String {
    missing.iter().map(|m| m.program).collect::<Vec<_>>().join(", ")
}

fn apt_line(missing: &[MissingProgram]) -> String {
    let mut packages: Vec<_> = missing.iter().map(|m| m.package).collect();
    packages.sort_unstable();
    packages.dedup();
    format!("apt-get install {}", packages.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_come_with_the_line_to_type() {
        let error = ImageError::MissingPrograms(vec![
            MissingProgram { program: "mmdebstrap", package: "mmdebstrap" },
            MissingProgram { program: "mkfs.erofs", package: "erofs-utils" },
        ]);
        let text = error.to_string();
        assert!(text.contains("mmdebstrap, mkfs.erofs"), "{text}");
        assert!(text.ends_with("apt-get install erofs-utils mmdebstrap"), "{text}");
    }
}
