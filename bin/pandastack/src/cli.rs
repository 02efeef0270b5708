//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::{doctor, run, sandbox, serve, snapshot, template, volume};

/// Runs untrusted code in throwaway microVMs.
#[derive(Parser, Clone, Debug)]
#[command(name = "pandastack", version, about, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  pandastack run -- python3 -c 'print(sum(range(100)))'
  pandastack serve
  pandastack sandbox create --template code-interpreter
  pandastack doctor

Exit status: the command's own for `run` and `sandbox exec`; 124 when it ran into its timeout;
125 when PandaStack itself failed; 2 when the command line makes no sense.")]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log on standard error, such as `debug` or `pandastack_engine=trace`
    #[arg(long, global = true, value_name = "FILTER", env = "PANDASTACK_LOG")]
    pub log: Option<String>,
    /// Log as JSON, one object per line
    #[arg(long, global = true)]
    pub log_json: bool,
}

/// What the program can do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Run the server: API, sandboxes and their reaper
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::Args),
    /// Run one command in a throwaway sandbox
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
    /// Work with the sandboxes of a running server
    #[command(subcommand, visible_alias = "sb")]
    Sandbox(sandbox::Command),
    /// List and delete snapshots, which outlive their sandboxes
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Build and list templates, what sandboxes are copies of
    #[command(subcommand)]
    Template(template::Command),
    /// Make and delete volumes, disks that outlive sandboxes
    #[command(subcommand)]
    Volume(volume::Command),
    /// Check this host and say what to fix
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
    /// Print the version
    #[command(after_help = "Examples:\n  pandastack version\n  pandastack version --json")]
    Version,
    /// Keeps the machines of a server that may die. For servers, which start it
    #[command(hide = true)]
    Hold {
        /// The server's directory, for whoever looks at the processes of the host
        dir: std::path::PathBuf,
    },
}

/// What a command has to know besides its own arguments.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Print JSON for programs.
    pub json: bool,
}

/// Parses `NAME=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it looks like NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"pandastack").chain(line))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_with_an_example() {
        fn check(command: &clap::Command) {
            let leaf = !command.has_subcommands();
            assert!(command.get_about().is_some(), "{}", command.get_name());
            assert!(!leaf || command.get_after_help().is_some(), "{}", command.get_name());
            // People type what they are shown.
            command.get_subcommands().filter(|command| !command.is_hide_set()).for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn options_behind_the_command_belong_to_the_command() {
        let line = ["run", "--timeout", "5", "--env", "A=b=c", "--", "ls", "--json", "-n", "--"];
        let cli = parse(&line).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert!(!cli.global.json);
        assert_eq!(args.command, ["ls", "--json", "-n", "--"]);
        assert_eq!(args.options.timeout, Some(5));
        assert_eq!(args.options.env, [("A".to_owned(), "b=c".to_owned())]);

        let cli = parse(&["run", "--json", "python3", "-c", "1"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert!(cli.global.json);
        assert_eq!(args.command, ["python3", "-c", "1"]);
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            &["run"][..],
            &["run", "--timeout", "0", "ls"],
            &["run", "--env", "=x", "ls"],
            &["run", "--unknown", "ls"],
            &["sandbox", "exec", "1b9d"],
            &["sandbox", "exec", "1b9d", "--shell", "x", "ls"],
            &["sandbox", "kill"],
            &["serve", "--engine", "xen"],
            &["volume", "create", "../x"],
            &["volume", "rm"],
            &["run", "--volume", "data:x", "ls"],
            &["sandbox", "create", "--volume", "a/b"],
            &["run", "--allow", "1.1.1.1", "ls"],
            &["run", "--egress", "None", "ls"],
            &["run", "--egress", "none", "--allow", "pypi.org", "ls"],
            &["sandbox", "create", "--egress", "{}"],
            &["sandbox", "egress", "1b9d", "--none", "--allow", "pypi.org"],
            &["sandbox", "egress", "1b9d", "--policy", "none", "--none"],
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
