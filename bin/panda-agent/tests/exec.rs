//! Commands, through the real agent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use pandastack_engine::agent::{AgentError, ErrorCode, ExecEvent, ExecSpec};
use support::{Agent, argv, drain, gone, runs, shell, text};

#[tokio::test]
async fn exit_codes_and_outputs_are_told_apart() {
    let agent = Agent::start().await;
    let output = agent.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n", "err\n"));
    assert_eq!((output.status.code, output.status.timed_out), (3, false));
    assert_eq!(agent.sh("true").await.status.code, 0);
    assert_eq!(agent.sh("kill -TERM $$").await.status.code, 128 + 15);
    assert_eq!(agent.sh("kill -KILL $$").await.status.code, 128 + 9);
    let echo = agent.client.run(argv(&["echo", "a b", "*", "$HOME"])).await.unwrap();
    assert_eq!(text(&echo.stdout), "a b * $HOME\n");
}

#[tokio::test]
async fn programs_that_cannot_run_say_so_like_a_shell() {
    let agent = Agent::start().await;
    let missing = agent.client.run(argv(&["no-such-program"])).await.unwrap();
    assert_eq!(missing.status.code, 127);
    assert_eq!(text(&missing.stderr), "no-such-program: not found\n");
    let denied = agent.client.run(argv(&["/etc/passwd"])).await.unwrap();
    assert_eq!(denied.status.code, 126);
    assert_eq!(text(&denied.stderr), "/etc/passwd: permission denied\n");
    let bad = |spec: ExecSpec| async { agent.client.run(spec).await.unwrap_err().code() };
    let cwd = ExecSpec { cwd: Some("/no/such".into()), ..shell("true") };
    assert_eq!(bad(cwd).await, Some(ErrorCode::NotFound));
    let user = ExecSpec { user: Some("no-such-user".into()), ..shell("true") };
    assert_eq!(bad(user).await, Some(ErrorCode::NotFound));
    assert_eq!(bad(ExecSpec::default()).await, Some(ErrorCode::InvalidArgument));
    let long = agent.client.run(shell(&"x".repeat(pandastack_proto::MAX_PAYLOAD))).await;
    assert!(matches!(long, Err(AgentError::TooLarge { .. })));
    // Fits in a request, but is more than the kernel takes for one argument.
    let long = agent.client.run(argv(&["echo", &"x".repeat(140_000)])).await.unwrap();
    assert_eq!(long.status.code, 126);
    assert_eq!(text(&long.stderr), "echo: arguments and environment too long\n");
}

#[tokio::test]
async fn environment_is_the_documented_one() {
    let agent = Agent::start().await;
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let spec = ExecSpec {
        env: vec![env("LANG", "x"), env("NEW", "ä=\n"), env("LANG", "y")],
        ..argv(&["env", "-0"])
    };
    let output = agent.client.run(spec).await.unwrap().stdout;
    let mut variables: Vec<&str> = text(&output).split_terminator('\0').collect();
    variables.retain(|variable| !variable.starts_with("PANDA_EXEC="));
    variables.sort_unstable();
    let home = text(&agent.sh("getent passwd root | cut -d: -f6").await.stdout).trim().to_owned();
    let shell = text(&agent.sh("getent passwd root | cut -d: -f7").await.stdout).trim().to_owned();
    let expected = [
        format!("HOME={home}"),
        "LANG=y".into(),
        "LOGNAME=root".into(),
        "NEW=ä=\n".into(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        format!("SHELL={shell}"),
        "USER=root".into(),
    ];
    assert_eq!(variables, expected);
}

#[tokio::test]
async fn cwd_user_and_unicode() {
    let agent = Agent::start().await;
    let cwd = ExecSpec { cwd: Some("/usr/bin".into()), ..argv(&["pwd"]) };
    assert_eq!(agent.client.run(cwd).await.unwrap().stdout, b"/usr/bin\n");
    let home = agent.sh("test \"$PWD\" = \"$HOME\" && umask").await;
    assert_eq!(text(&home.stdout), "0022\n");
    let line = "printf '%s' 'grüße 🐼 \u{202e}'";
    assert_eq!(text(&agent.sh(line).await.stdout), "grüße 🐼 \u{202e}");
    if rustix::process::getuid().is_root() {
        let spec = ExecSpec {
            user: Some("nobody".into()),
            ..shell("id -un; id -G; pwd; exec 3</etc/shadow")
        };
        let output = agent.client.run(spec).await.unwrap();
        assert_eq!(text(&output.stdout), "nobody\n65534\n/\n");
        assert_ne!(output.status.code, 0);
    }
}

#[tokio::test]
async fn commands_inherit_nothing_of_the_agent() {
    let agent = Agent::start().await;
    let output = agent.client.run(argv(&["ls", "/proc/self/fd"])).await.unwrap();
    assert_eq!(text(&output.stdout), "0\n1\n2\n3\n", "3 is the directory itself");
    // No blocked signals, and SIGPIPE works: the agent itself ignores it.
    let status = agent.client.run(argv(&["cat", "/proc/self/status"])).await.unwrap().stdout;
    let mask = |name| {
        let line = text(&status).lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!((mask("SigBlk:"), mask("SigIgn:") & (1 << 12)), (0, 0));
    let limits = agent.sh("ulimit -n; readlink /proc/self/fd/0").await;
    assert_eq!(text(&limits.stdout), "1024\n/dev/null\n");
}

#[tokio::test]
async fn stdin_is_echoed_and_closed() {
    let agent = Agent::start().await;
    let spec = ExecSpec { stdin: true, ..argv(&["cat"]) };
    let mut session = agent.client.exec(spec).await.unwrap();
    let stdin = session.stdin();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let bytes = Bytes::from(sent.clone());
    let writer = tokio::spawn(async move {
        stdin.write(bytes).await.unwrap();
        stdin.close();
    });
    let (echoed, code) = drain(&mut session).await;
    writer.await.unwrap();
    assert_eq!(code, 0);
    assert!(echoed == sent);
}

#[tokio::test]
async fn input_that_looks_like_a_new_connection_is_only_input() {
    let agent = Agent::start().await;
    let mut sent = vec![b'x'; 100];
    for _ in 0..50 {
        sent.extend_from_slice(&pandastack_proto::MAGIC);
        sent.extend_from_slice(b"..");
    }
    let mut session = agent.client.exec(ExecSpec { stdin: true, ..argv(&["cat"]) }).await.unwrap();
    session.stdin().write(Bytes::from(sent.clone())).await.unwrap();
    session.stdin().close();
    let (echoed, _) = drain(&mut session).await;
    assert!(echoed == sent);
}

#[tokio::test]
async fn a_command_that_does_not_read_gets_no_more_than_its_window() {
    let agent = Agent::start().await;
    let spec = ExecSpec { stdin: true, ..argv(&["sleep", "1"]) };
    let mut session = agent.client.exec(spec).await.unwrap();
    let stdin = session.stdin();
    // Twice what pipe and window hold: waits until the command is gone, then goes nowhere.
    stdin.write(Bytes::from(vec![0; 1 << 20])).await.unwrap();
    assert_eq!(drain(&mut session).await.1, 0);
    assert_eq!(agent.sh("cat").await.status.code, 0, "stdin is /dev/null by default");
}

#[tokio::test]
async fn ten_thousand_lines_arrive_in_order() {
    let agent = Agent::start().await;
    let output = agent.sh("seq 10000").await.stdout;
    let expected: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&output), expected);
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else() {
    const SIZE: usize = 10 << 20;
    let agent = Agent::start().await;
    let before = agent.resident_kib();
    let mut slow = agent.client.exec(shell(&format!("head -c {SIZE} /dev/zero"))).await.unwrap();
    let mut seen = 0;
    for turn in 0.. {
        match slow.next().await.unwrap().unwrap() {
            ExecEvent::Stdout(bytes) => seen += bytes.len(),
            ExecEvent::Stderr(_) => unreachable!(),
            ExecEvent::Exit(status) => {
                assert_eq!(status.code, 0);
                break;
            }
        }
        if turn % 32 == 0 {
            let begin = Instant::now();
            assert_eq!(agent.sh("echo quick").await.stdout, b"quick\n");
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(seen, SIZE);
    assert!(agent.resident_kib() < before + 2048, "the agent buffers no more than a window");
}

#[tokio::test]
async fn many_commands_at_once() {
    let agent = Agent::start().await;
    let mut sessions = Vec::new();
    for n in 0..200 {
        sessions.push(agent.client.exec(shell(&format!("sleep 0.3; echo {n}"))).await.unwrap());
    }
    for (n, session) in sessions.iter_mut().enumerate() {
        assert_eq!(drain(session).await, (format!("{n}\n").into_bytes(), 0));
    }
}

#[tokio::test]
async fn a_timeout_kills_the_whole_tree() {
    let agent = Agent::start().await;
    let line = "setsid sleep 987.001 & (setsid sh -c 'sleep 987.002; :' &) ; sleep 987.003";
    let spec = ExecSpec { timeout_ms: Some(300), ..shell(line) };
    let begin = Instant::now();
    let output = agent.client.run(spec).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!((output.status.code, output.status.timed_out), (137, true));
    for number in 1..=3 {
        assert!(gone(&format!("987.00{number}")).await, "sleep {number} escaped");
    }
}

#[tokio::test]
async fn output_before_a_timeout_is_kept() {
    let agent = Agent::start().await;
    let spec = ExecSpec { timeout_ms: Some(200), ..shell("echo early; sleep 60; echo late") };
    let output = agent.client.run(spec).await.unwrap();
    assert_eq!(text(&output.stdout), "early\n");
    assert!(output.status.timed_out);
}

#[tokio::test]
async fn killing_and_dropping_end_the_tree() {
    let agent = Agent::start().await;
    let mut killed = agent.client.exec(shell("setsid sleep 986.1 & sleep 986.2")).await.unwrap();
    let dropped = agent.client.exec(shell("setsid sleep 986.3 & sleep 986.4")).await.unwrap();
    while !(1..=4).all(|n| runs(&format!("986.{n}"))) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    killed.kill();
    drop(dropped);
    assert_eq!(drain(&mut killed).await.1, 137);
    assert_eq!(killed.next().await, Ok(None));
    for number in 1..=4 {
        assert!(gone(&format!("986.{number}")).await, "sleep {number} escaped");
    }
}

#[tokio::test]
async fn background_processes_live_on_and_do_not_delay_the_end() {
    let agent = Agent::start().await;
    let begin = Instant::now();
    let output = agent.sh("sleep 985.1 & echo done").await;
    assert_eq!((output.status.code, text(&output.stdout)), (0, "done\n"));
    // One that never stops writing into the pipe it inherited.
    let output = agent.sh("(trap '' PIPE; while :; do echo noise; done) & sleep 0.1; exit 5").await;
    assert_eq!(output.status.code, 5);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(runs("985.1"));
    agent.sh("kill $(pgrep -f '[s]leep 985.1'); pkill -f '[w]hile :; do echo noise'").await;
}

#[tokio::test]
async fn a_flood_of_output_is_stopped_by_dropping_it() {
    let agent = Agent::start().await;
    let mut flood = agent.client.exec(argv(&["yes", "984.1"])).await.unwrap();
    for _ in 0..100 {
        assert!(matches!(flood.next().await, Ok(Some(ExecEvent::Stdout(_)))));
    }
    drop(flood);
    assert!(gone("984.1").await);
    agent.client.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_processes_leave_nothing_behind() {
    let agent = Agent::start().await;
    agent.sh("true").await;
    let (descriptors, memory) = (agent.descriptors(), agent.resident_kib());
    for _ in 0..10 {
        let runs: Vec<_> = (0..20)
            .map(|_| {
                let client = agent.client.clone();
                // Each is a command of its own and 99 orphans that come to the agent.
                let line = "i=0; while [ $i -lt 99 ]; do (/bin/true &) ; i=$((i+1)); done";
                tokio::spawn(async move { client.run(shell(line)).await.unwrap().status.code })
            })
            .collect();
        for run in runs {
            assert_eq!(run.await.unwrap(), 0);
        }
    }
    for _ in 0..100 {
        if agent.children().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(agent.children(), Vec::<String>::new());
    assert_eq!(agent.descriptors(), descriptors);
    assert!(agent.resident_kib() < memory + 1024, "{memory} -> {} KiB", agent.resident_kib());
}

#[tokio::test]
async fn the_client_has_a_limit_of_open_streams() {
    let agent = Agent::start().await;
    let mut sessions = Vec::new();
    let refused = loop {
        match agent.client.exec(argv(&["sleep", "983.1"])).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert_eq!((sessions.len(), refused), (256, AgentError::TooMany));
    drop(sessions);
    assert!(gone("983.1").await);
    // A stream counts until the agent has confirmed its end.
    while agent.client.ping().await == Err(AgentError::TooMany) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.client.ping().await.unwrap();
}
