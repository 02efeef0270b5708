//! `pandastack run` with a server.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::fake::{Fake, NEW};
use crate::program::{Program, signal, stderr, stdout};

/// A program and the server that it talks to.
async fn pair() -> (Fake, Program) {
    let fake = Fake::start().await;
    let program = Program::of(fake.url());
    (fake, program)
}

fn deleted() -> String {
    format!("DELETE /v1/sandboxes/{NEW}")
}

#[tokio::test]
async fn streams_pass_through_byte_for_byte_and_the_sandbox_is_deleted() {
    let (fake, program) = pair().await;
    // Longer than every buffer on the way, and every byte there is.
    let input: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let output = program.run_with(&["run", "--", "tee"], input.clone()).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == input && output.stderr == input);
    assert_eq!(fake.requests().last(), Some(&deleted()));
}

#[tokio::test]
async fn the_request_says_what_the_command_line_says() {
    let (fake, program) = pair().await;
    let line = ["run", "--memory", "1024", "--timeout", "9", "--env", "A=b=c", "--cwd", "/tmp"];
    let output =
        program.run(&[&line[..], &["--user", "nobody", "--", "fail", "--json"]].concat()).await;
    assert_eq!(output.status.code(), Some(7));
    let bodies = fake.bodies();
    assert_eq!((&bodies[0]["memory_mb"], &bodies[0]["ttl_seconds"]), (&1024.into(), &120.into()));
    let expected = r#"{"argv":["fail","--json"],"timeout_seconds":9,"env":{"A":"b=c"},
                       "cwd":"/tmp","user":"nobody"}"#;
    assert_eq!(bodies[1], serde_json::from_str::<Value>(expected).unwrap());
}

#[tokio::test]
async fn a_deadline_has_a_status_of_its_own() {
    let (fake, program) = pair().await;
    let output = program.run(&["run", "--timeout", "1", "--", "late"]).await;
    assert_eq!(output.status.code(), Some(124));
    assert!(stderr(&output).contains("longer than 1 s"), "{}", stderr(&output));
    assert_eq!(fake.requests().last(), Some(&deleted()));
}

#[tokio::test]
async fn our_own_failures_are_no_exit_status_of_a_command() {
    let (fake, program) = pair().await;
    for (line, words) in [
        (&["run", "--", "vanish"][..], "before the command's end was known"),
        (&["run", "--", "nonsense"], "no such command"),
        (&["run", "--template", "none", "--", "cat"], "unknown template"),
    ] {
        let output = program.run(line).await;
        assert_eq!(output.status.code(), Some(125), "{line:?}");
        assert!(stderr(&output).contains(words), "{line:?}: {}", stderr(&output));
    }
    assert_eq!(fake.requests().iter().filter(|asked| **asked == deleted()).count(), 2);
}

#[tokio::test]
async fn signals_kill_the_command_and_delete_the_sandbox() {
    for (name, status) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let (fake, program) = pair().await;
        let mut child = program.command(&["run", "--", "hang"]).spawn().unwrap();
        let mut text = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut text).await.unwrap();
        signal(&child, name).await;
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(status), "{name}: {}", stderr(&output));
        assert_eq!(stderr(&output), "");
        fake.asked("hung up").await;
        fake.asked(&deleted()).await;
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let (fake, program) = pair().await;
    let mut child = program.command(&["run", "--", "flood"]).spawn().unwrap();
    let mut some = [0; 100];
    child.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(141), String::new()));
    fake.asked(&deleted()).await;
}

#[tokio::test]
async fn an_input_without_end_does_not_keep_a_finished_command() {
    let (_fake, program) = pair().await;
    let mut child = program.command(&["run", "--", "fail"]).stdin(Stdio::piped()).spawn().unwrap();
    let held_open = child.stdin.take();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    drop(held_open);
}

#[tokio::test]
async fn the_report_has_everything() {
    let (_fake, program) = pair().await;
    let output = program.run_with(&["run", "--json", "--", "tee"], b"a\xff".to_vec()).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["stdout"], &report["stderr"]), (&"a\u{fffd}".into(), &"a\u{fffd}".into()));
    assert_eq!((&report["exit_code"], &report["timed_out"]), (&0.into(), &false.into()));
    assert_eq!((&report["sandbox"], &report["isolation"]), (&NEW.into(), &"emulated".into()));
    assert!(report["timings"]["create_ms"].is_u64(), "{report}");
}

#[tokio::test]
async fn the_configuration_file_leads_to_the_server() {
    let fake = Fake::start().await;
    let program = Program::alone();
    let home = program.home().join(".config/pandastack");
    std::fs::create_dir_all(&home).unwrap();
    let config = serde_json::json!({"api_url": fake.url(), "apiKey": crate::fake::KEY});
    std::fs::write(home.join("config.json"), config.to_string()).unwrap();
    let output = program.run(&["run", "--", "fail"]).await;
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}
