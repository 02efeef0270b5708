//! From a request to arguments, environment and directory.

use std::ffi::CString;

use pandastack_proto::{ErrorCode, ExecSpec, Failure};
use rustix::fs::FileType;

use super::user::{self, User};
use crate::failure::{because, refuse};
use crate::files;

/// Where programs are looked for unless the request says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that is ready to be started.
#[derive(Debug)]
pub struct Command {
    pub programs: Vec<CString>,
    pub args: Vec<CString>,
    /// Whether the first argument is whichever program was there.
    pub path_as_name: bool,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub user: User,
}

/// Resolves a request against the guest as it is now. `marker` is one more variable.
pub fn prepare(spec: &ExecSpec, marker: Option<&str>) -> Result<Command, Failure> {
    let user = user::find(spec.user.as_deref().unwrap_or("root"))?;
    let mut env = environment(&user, &spec.env)?;
    let (programs, args, path_as_name) = match (&spec.argv, &spec.shell) {
        (Some(argv), None) => (programs(argv, &env)?, argv.clone(), false),
        (None, Some(line)) => {
            let programs = ["/bin/bash", "/bin/sh"].map(String::from).to_vec();
            (programs, vec!["/bin/sh".into(), "-c".into(), line.clone()], true)
        }
        _ => {
            let what = "a command has either arguments or a shell line";
            return Err(refuse(ErrorCode::InvalidArgument, what));
        }
    };
    if let Some(marker) = marker {
        env.push(("PANDA_EXEC".into(), marker.to_owned()));
    }
    let env = env.into_iter().map(|(name, value)| format!("{name}={value}"));
    Ok(Command {
        programs: strings(programs)?,
        args: strings(args)?,
        path_as_name,
        env: strings(env)?,
        cwd: directory(spec.cwd.as_deref(), &user)?,
        user,
    })
}

/// The default variables, then the request's; the last one of a name wins.
fn environment(user: &User, extra: &[(String, String)]) -> Result<Vec<(String, String)>, Failure> {
    let mut env: Vec<(String, String)> = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    for (name, value) in extra {
        if name.is_empty() || name.contains('=') {
            return Err(refuse(
                ErrorCode::InvalidArgument,
                "a variable's name is empty or has '='",
            ));
        }
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    Ok(env)
}

/// Where the program may be. The child tries them, because it has the user's permissions.
fn programs(argv: &[String], env: &[(String, String)]) -> Result<Vec<String>, Failure> {
    let name = argv.first().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| refuse(ErrorCode::InvalidArgument, "a command needs a name"))?;
    if name.contains('/') {
        return Ok(vec![name.clone()]);
    }
    let path = env.iter().find(|(known, _)| known == "PATH").map_or(PATH, |(_, path)| path);
    // As in a shell, an empty part of the path is the current directory.
    let join =
        |dir: &str| if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
    Ok(path.split(':').map(join).collect())
}

/// The directory to start in. A home that does not exist, as after `rm -rf /`, is the root.
fn directory(wanted: Option<&str>, user: &User) -> Result<CString, Failure> {
    let path = match wanted {
        Some(path) => files::resolve(path)?,
        None => files::resolve(&user.home)?,
    };
    let found = rustix::fs::stat(&path)
        .map_err(because(|| format!("cannot start in {}", path.to_string_lossy())))
        .and_then(|stat| match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(()),
            _ => {
                let message = format!("{} is not a directory", path.to_string_lossy());
                Err(refuse(ErrorCode::NotDirectory, message))
            }
        });
    match (found, wanted) {
        (Ok(()), _) => Ok(path),
        (Err(_), None) => Ok(c"/".to_owned()),
        (Err(failure), Some(_)) => Err(failure),
    }
}

fn strings(words: impl IntoIterator<Item = String>) -> Result<Vec<CString>, Failure> {
    words
        .into_iter()
        .map(CString::new)
        .collect::<Result<_, _>>()
        .map_err(|_| refuse(ErrorCode::InvalidArgument, "a command cannot contain a NUL character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(argv: &[&str]) -> ExecSpec {
        let argv = argv.iter().map(|&a| a.to_owned()).collect();
        ExecSpec { argv: Some(argv), ..ExecSpec::default() }
    }

    fn code(spec: &ExecSpec) -> ErrorCode {
        prepare(spec, None).unwrap_err().code
    }

    #[test]
    fn programs_are_looked_for_in_the_requests_path() {
        let mut spec = spec(&["ls", "-l"]);
        spec.env = vec![("PATH".into(), "/a::/b".into())];
        let command = prepare(&spec, None).unwrap();
        assert_eq!(
            command.programs,
            [c"/a/ls".to_owned(), c"./ls".to_owned(), c"/b/ls".to_owned()]
        );
        spec.argv = Some(vec!["./x".into()]);
        assert_eq!(prepare(&spec, None).unwrap().programs, [c"./x".to_owned()]);
    }

    #[test]
    fn impossible_commands_are_refused() {
        assert_eq!(code(&ExecSpec::default()), ErrorCode::InvalidArgument);
        assert_eq!(code(&spec(&[])), ErrorCode::InvalidArgument);
        assert_eq!(code(&spec(&[""])), ErrorCode::InvalidArgument);
        assert_eq!(code(&spec(&["a\0b"])), ErrorCode::InvalidArgument);
        let both = ExecSpec { shell: Some("ls".into()), ..spec(&["ls"]) };
        assert_eq!(code(&both), ErrorCode::InvalidArgument);
        let name = ExecSpec { env: vec![("A=B".into(), "c".into())], ..spec(&["ls"]) };
        assert_eq!(code(&name), ErrorCode::InvalidArgument);
        let cwd = ExecSpec { cwd: Some("/missing".into()), ..spec(&["ls"]) };
        assert_eq!(code(&cwd), ErrorCode::NotFound);
        let file = ExecSpec { cwd: Some("/etc/passwd".into()), ..spec(&["ls"]) };
        assert_eq!(code(&file), ErrorCode::NotDirectory);
        let user = ExecSpec { user: Some("nobody-here".into()), ..spec(&["ls"]) };
        assert_eq!(code(&user), ErrorCode::NotFound);
    }
}
