//! What clients may ask for: the validators of create and exec.

use std::collections::BTreeMap;
use std::time::Duration;

use pandastack_policy::Policy;
use pandastack_proto::ExecSpec;
use pandastack_types::{
    ExecRequest, Size, SizeLimits, SnapshotId, TemplateName, TtlMode, VolumeMount,
};

use crate::error::InvalidRequest;

/// Longest time to live: a century. Beyond it a number is more likely a mistake.
pub(crate) const MAX_TTL_SECONDS: i64 = 100 * 365 * 86_400;
/// Longest time limit of one command.
pub(crate) const MAX_EXEC_SECONDS: i64 = 86_400;

/// Bytes of a command with its environment: they travel to the guest in one frame.
const MAX_COMMAND: usize = pandastack_proto::MAX_PAYLOAD - (12 << 10);
const MAX_ARGUMENTS: usize = 1024;
const MAX_VARIABLES: usize = 256;
const MAX_PATH: usize = 4096;
const MAX_USER: usize = 32;
/// Bytes of standard input in a request. Longer input is written to a file first, or attached.
const MAX_STDIN: usize = 512 << 10;

/// Most children of one fork.
pub(crate) const MAX_CHILDREN: i64 = 100;

/// A sandbox that a client asks for.
#[derive(Clone, Debug)]
pub struct NewSandbox {
    /// Name or alias of the template.
    pub template: TemplateName,
    /// vCPUs, the template's default when absent.
    pub cpu: Option<i64>,
    /// Guest memory in MiB, the template's default when absent.
    pub memory_mb: Option<i64>,
    /// Writable disk in MiB, the template's default when absent.
    pub disk_mb: Option<i64>,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// Seconds of life, 0 for no limit; the server's default when absent.
    pub ttl_seconds: Option<i64>,
    /// What the seconds of life count.
    pub ttl_mode: TtlMode,
    /// Whether it outlives a client's `with` block.
    pub persistent: bool,
    /// Seconds without use after which it hibernates, 0 for never; the server's default for
    /// persistent ones when absent.
    pub idle_timeout: Option<i64>,
    /// The snapshot that it is made of, in place of a template.
    pub from_snapshot: Option<SnapshotId>,
    /// Its volumes.
    pub volumes: Vec<VolumeMount>,
    /// What it may reach; nothing when absent, or what the snapshot's sandbox was allowed.
    pub egress: Option<Policy>,
}

/// The size class that a request asks for, with the template's defaults filled in. A template's
/// disk cannot be made smaller.
pub(crate) fn size(
    request: &NewSandbox,
    default: Size,
    limits: SizeLimits,
) -> Result<Size, InvalidRequest> {
    let cpu = request.cpu.unwrap_or(default.cpu.into());
    let memory_mb = request.memory_mb.unwrap_or(default.memory_mb.into());
    let disk_mb = request.disk_mb.unwrap_or(default.disk_mb.into());
    Ok(Size::within(limits, default.disk_mb, [cpu, memory_mb, disk_mb])?)
}

/// Children that a client asks a running sandbox for.
#[derive(Clone, Debug, Default)]
pub struct ForkRequest {
    /// How many; one when absent.
    pub count: Option<i64>,
    /// Labels on top of the parent's.
    pub metadata: BTreeMap<String, String>,
    /// Seconds of life from now on, 0 for no limit; the parent's setting when absent.
    pub ttl_seconds: Option<i64>,
    /// Whether they are marked as siblings of one tree.
    pub tree: bool,
    /// What they may reach; what the parent may when absent.
    pub egress: Option<Policy>,
}

/// A number of children as it came over the wire.
pub(crate) fn children(count: i64) -> Result<usize, InvalidRequest> {
    let legal = (1..=MAX_CHILDREN).contains(&count);
    let refused = || field(format!("count must be 1 to {MAX_CHILDREN}, not {count}"));
    usize::try_from(count).ok().filter(|_| legal).ok_or_else(refused)
}

/// A time to live as it came over the wire.
pub(crate) fn ttl(seconds: i64) -> Result<u64, InvalidRequest> {
    u64::try_from(seconds)
        .ok()
        .filter(|_| seconds <= MAX_TTL_SECONDS)
        .ok_or(InvalidRequest::Ttl(seconds))
}

/// Seconds without use as they came over the wire.
pub(crate) fn idle_timeout(seconds: i64) -> Result<u64, InvalidRequest> {
    let legal = u64::try_from(seconds).ok().filter(|_| seconds <= MAX_TTL_SECONDS);
    legal.ok_or_else(|| {
        field(format!("idle_timeout must be 0 (never) to {MAX_TTL_SECONDS} seconds, not {seconds}"))
    })
}

/// A command, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub(crate) spec: ExecSpec,
    pub(crate) input: Input,
    pub(crate) timeout: Option<Duration>,
}

/// What a command reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    None,
    /// A text that came with the request.
    Text(String),
    /// What the client sends while the command runs.
    Attached,
}

impl Command {
    /// The time limit that the client asked for.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The same command with a time limit, if it had none.
    pub fn or_timeout(mut self, default: Duration) -> Self {
        self.timeout.get_or_insert(default);
        self
    }

    /// The same command with standard input left open for [`Execution::stdin`].
    ///
    /// [`Execution::stdin`]: crate::Execution::stdin
    pub fn attached(mut self) -> Self {
        self.input = Input::Attached;
        self
    }
}

impl TryFrom<ExecRequest> for Command {
    type Error = InvalidRequest;

    fn try_from(request: ExecRequest) -> Result<Self, InvalidRequest> {
        let (argv, shell) = match (request.argv, request.cmd) {
            (Some(argv), _) => (Some(check_argv(argv)?), None),
            (None, Some(cmd)) if !cmd.trim().is_empty() => (None, Some(check_line(cmd)?)),
            (None, _) => return Err(field("cmd is required".to_owned())),
        };
        let spec = ExecSpec {
            argv,
            shell,
            env: check_env(request.env)?,
            cwd: request.cwd.map(|cwd| path("cwd", cwd)).transpose()?,
            user: request.user.map(check_user).transpose()?,
            ..ExecSpec::default()
        };
        check_size(&spec)?;
        Ok(Self {
            spec,
            input: request
                .stdin
                .map_or(Ok(Input::None), |text| check_stdin(text).map(Input::Text))?,
            timeout: request.timeout_seconds.map(check_timeout).transpose()?,
        })
    }
}

/// A path in a guest: any absolute path, since everything in the guest is the tenant's own.
pub(crate) fn path(name: &str, text: String) -> Result<String, InvalidRequest> {
    if !text.starts_with('/') {
        return Err(field(format!("{name} must be an absolute path")));
    }
    if text.len() > MAX_PATH {
        return Err(field(format!("{name} is longer than {MAX_PATH} bytes")));
    }
    no_nul(name, &text)?;
    Ok(text)
}

fn check_line(line: String) -> Result<String, InvalidRequest> {
    no_nul("cmd", &line)?;
    Ok(line)
}

fn check_argv(argv: Vec<String>) -> Result<Vec<String>, InvalidRequest> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(field("argv must name a program".to_owned()));
    }
    if argv.len() > MAX_ARGUMENTS {
        return Err(field(format!("argv has more than {MAX_ARGUMENTS} entries")));
    }
    argv.iter().try_for_each(|argument| no_nul("argv", argument))?;
    Ok(argv)
}

fn check_env(env: BTreeMap<String, String>) -> Result<Vec<(String, String)>, InvalidRequest> {
    if env.len() > MAX_VARIABLES {
        return Err(field(format!("env has more than {MAX_VARIABLES} entries")));
    }
    for (name, value) in &env {
        let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let tail = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !(head && tail) {
            return Err(field("env names are letters, digits and underscores".to_owned()));
        }
        no_nul("env", value)?;
    }
    Ok(env.into_iter().collect())
}

fn check_size(spec: &ExecSpec) -> Result<(), InvalidRequest> {
    let line = spec.shell.as_ref().map_or(0, String::len);
    let argv: usize = spec.argv.iter().flatten().map(|argument| argument.len() + 5).sum();
    let env: usize = spec.env.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
    if line + argv + env > MAX_COMMAND {
        return Err(field(format!(
            "a command with its environment must be at most {MAX_COMMAND} bytes; \
             write longer scripts to a file"
        )));
    }
    Ok(())
}

fn check_user(user: String) -> Result<String, InvalidRequest> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if user.is_empty() || user.len() > MAX_USER || !user.bytes().all(legal) {
        return Err(field(format!("user must be a user name of 1 to {MAX_USER} characters")));
    }
    Ok(user)
}

fn check_stdin(stdin: String) -> Result<String, InvalidRequest> {
    if stdin.len() > MAX_STDIN {
        return Err(field(format!("stdin is longer than {MAX_STDIN} bytes")));
    }
    Ok(stdin)
}

fn check_timeout(seconds: i64) -> Result<Duration, InvalidRequest> {
    u64::try_from(seconds)
        .ok()
        .filter(|n| (1..=MAX_EXEC_SECONDS as u64).contains(n))
        .map(Duration::from_secs)
        .ok_or(InvalidRequest::Timeout(seconds))
}

fn no_nul(name: &str, text: &str) -> Result<(), InvalidRequest> {
    if text.contains('\0') {
        return Err(field(format!("{name} must not contain a NUL character")));
    }
    Ok(())
}

fn field(text: String) -> InvalidRequest {
    InvalidRequest::Field(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmd(cmd: &str) -> ExecRequest {
        ExecRequest { cmd: Some(cmd.to_owned()), ..ExecRequest::default() }
    }

    #[test]
    fn a_line_goes_to_the_shell_and_a_vector_does_not() {
        let line = Command::try_from(cmd("echo $HOME")).unwrap();
        assert_eq!((line.spec.shell.as_deref(), line.spec.argv), (Some("echo $HOME"), None));
        let argv = Some(vec!["echo".to_owned(), "$HOME".to_owned()]);
        let exact = ExecRequest { argv, ..cmd("ignored") };
        let exact = Command::try_from(exact).unwrap().spec;
        assert_eq!((exact.argv, exact.shell), (Some(vec!["echo".into(), "$HOME".into()]), None));
    }

    #[test]
    fn nonsense_is_refused() {
        let with = |change: fn(&mut ExecRequest)| {
            let mut request = cmd("true");
            change(&mut request);
            Command::try_from(request)
        };
        let refused: [fn(&mut ExecRequest); 15] = [
            |r| r.cmd = None,
            |r| r.cmd = Some(" \n".to_owned()),
            |r| r.cmd = Some("a\0b".to_owned()),
            |r| r.cmd = Some("x".repeat(MAX_COMMAND + 1)),
            |r| r.argv = Some(vec![]),
            |r| r.argv = Some(vec![String::new()]),
            |r| r.argv = Some(vec!["x".to_owned(); MAX_ARGUMENTS + 1]),
            |r| r.timeout_seconds = Some(0),
            |r| r.timeout_seconds = Some(-1),
            |r| r.timeout_seconds = Some(i64::MAX),
            |r| r.cwd = Some("relative".to_owned()),
            |r| r.user = Some("root:wheel".to_owned()),
            |r| r.stdin = Some("x".repeat(MAX_STDIN + 1)),
            |r| r.env = BTreeMap::from([("A".to_owned(), "x".repeat(MAX_COMMAND))]),
            |r| r.env = BTreeMap::from([("A=B".to_owned(), String::new())]),
        ];
        for (index, change) in refused.into_iter().enumerate() {
            assert!(with(change).is_err(), "case {index}");
        }
        let accepted = with(|r| {
            r.timeout_seconds = Some(86_400);
            r.env = BTreeMap::from([("_A1".to_owned(), "x=y z".to_owned())]);
        });
        assert_eq!(accepted.unwrap().timeout, Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn a_ttl_is_neither_negative_nor_absurd() {
        assert_eq!(ttl(0), Ok(0));
        assert_eq!(ttl(300), Ok(300));
        for bad in [-1, i64::MIN, i64::MAX, MAX_TTL_SECONDS + 1] {
            assert_eq!(ttl(bad), Err(InvalidRequest::Ttl(bad)));
        }
    }
}
