//! `pandastack sandbox`, but for copies.

use serde_json::Value;

use crate::fake::{Fake, IDS, NEW};
use crate::program::{Program, stderr, stdout};

async fn pair() -> (Fake, Program) {
    let fake = Fake::start().await;
    let program = Program::of(fake.url());
    (fake, program)
}

#[tokio::test]
async fn create_prints_an_id_for_scripts() {
    let (fake, program) = pair().await;
    let line = ["sandbox", "create", "--cpu", "2", "--ttl", "60", "--metadata", "job=a b"];
    let output = program.run(&line).await;
    assert_eq!(stdout(&output), format!("{NEW}\n"));
    let body = &fake.bodies()[0];
    assert_eq!((&body["cpu"], &body["ttl_seconds"]), (&2.into(), &60.into()));
    assert_eq!(body["metadata"]["job"], "a b");
}

#[tokio::test]
async fn a_prefix_is_enough_when_it_is_clear() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "kill", "1b9d", "1b9e"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for id in IDS {
        assert!(fake.requests().contains(&format!("DELETE /v1/sandboxes/{id}")));
    }
    let output = program.run(&["sandbox", "pause", "1b9"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("could be any of"), "{}", stderr(&output));
}

#[tokio::test]
async fn kill_goes_on_after_a_failure_and_reports_it() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "kill", "ffff", "1b9d"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("cannot kill ffff"), "{}", stderr(&output));
    assert!(fake.requests().contains(&format!("DELETE /v1/sandboxes/{}", IDS[0])));
}

#[tokio::test]
async fn listings_are_tables_or_json() {
    let (_fake, program) = pair().await;
    let output = program.run(&["sandbox", "ls"]).await;
    assert_eq!(stdout(&output).lines().count(), 3, "{}", stdout(&output));
    let output = program.run(&["sandbox", "ls", "--json"]).await;
    let listed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(listed[0]["id"], IDS[0]);
    let output = program.run(&["sandbox", "get", IDS[0]]).await;
    assert!(stdout(&output).contains("emulated"), "{}", stdout(&output));
}

#[tokio::test]
async fn exec_takes_an_argv_or_a_line_of_shell() {
    let (fake, program) = pair().await;
    let output = program.run_with(&["sandbox", "exec", "1b9d", "--", "cat"], b"hi".into()).await;
    assert_eq!((stdout(&output), output.status.code()), ("hi".into(), Some(0)));
    program.run(&["sandbox", "exec", "1b9d", "--shell", "echo $HOME"]).await;
    assert_eq!(fake.bodies()[1]["cmd"], "echo $HOME");
    // The sandbox is not ours to delete.
    assert!(!fake.requests().iter().any(|asked| asked.starts_with("DELETE")));
}

#[tokio::test]
async fn logs_come_at_once_or_as_they_are_written() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "logs", "1b9d", "--tail", "5"]).await;
    assert_eq!(stdout(&output), "one\ntwo");
    let output = program.run(&["sandbox", "logs", "1b9d", "--follow"]).await;
    assert_eq!(stdout(&output), "one\ntwo\n");
    let output = program.run(&["sandbox", "logs", "1b9d", "--json"]).await;
    assert_eq!(stdout(&output), "{\"line\":\"one\"}\n{\"line\":\"two\"}\n");
    let path = format!("GET /v1/sandboxes/{}/logs?stream=both&tail=5", IDS[0]);
    assert!(fake.requests().contains(&path), "{:?}", fake.requests());
}

#[tokio::test]
async fn fork_prints_ids_and_what_is_missing() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "fork", "1b9d", "--metadata", "try=a"]).await;
    assert_eq!((stdout(&output), output.status.code()), (format!("{NEW}\n"), Some(0)));
    assert_eq!(fake.bodies()[0], serde_json::json!({"count": 1, "metadata": {"try": "a"}}));
    let output = program.run(&["sandbox", "fork", "1b9d", "-n", "3", "--ttl", "9"]).await;
    assert_eq!((stdout(&output).lines().count(), output.status.code()), (2, Some(125)));
    assert!(stderr(&output).contains("copy 2 is missing: not ready"), "{}", stderr(&output));
    assert_eq!(fake.bodies()[1]["ttl_seconds"], 9);
    let output = program.run(&["sandbox", "fork", "1b9d", "--json"]).await;
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&answer["parent_id"], &answer["sandbox"]["id"]), (&IDS[0].into(), &NEW.into()));
}

#[tokio::test]
async fn a_snapshot_is_taken_and_used() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "snapshot", "1b9d"]).await;
    assert_eq!(stdout(&output), format!("{NEW}\n"));
    let output = program.run(&["sandbox", "create", "--from-snapshot", NEW]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(fake.bodies()[0]["from_snapshot"], NEW);
    let both = ["sandbox", "create", "--from-snapshot", NEW, "--memory", "512"];
    assert_eq!(program.run(&both).await.status.code(), Some(2));
}

#[tokio::test]
async fn snapshots_are_listed_and_deleted_by_the_beginning_of_their_id() {
    let (fake, program) = pair().await;
    let output = program.run(&["snapshot", "ls"]).await;
    assert!(stdout(&output).contains(NEW) && stdout(&output).contains(IDS[0]), "{output:?}");
    let output = program.run(&["snapshot", "rm", "77aa"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fake.requests().contains(&format!("DELETE /v1/snapshots/{NEW}")));
    let output = program.run(&["snapshot", "rm", "88"]).await;
    assert!(stderr(&output).contains("there is no snapshot \"88\""), "{}", stderr(&output));
}

#[tokio::test]
async fn ttl_is_set_from_now() {
    let (fake, program) = pair().await;
    let output = program.run(&["sandbox", "ttl", "1b9d", "3600", "--json"]).await;
    assert!(stdout(&output).contains("3600"), "{}", stderr(&output));
    assert_eq!(fake.bodies()[0]["ttl_seconds"], 3600);
}

#[tokio::test]
async fn a_wrong_key_and_a_missing_server_come_with_a_hint() {
    let (_fake, program) = pair().await;
    let mut wrong = program.command(&["sandbox", "ls"]);
    let output = wrong.env("PANDASTACK_API_KEY", "pds_wrong").output().await.unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("hint: set PANDASTACK_API_KEY"), "{}", stderr(&output));

    let nobody = Program::of("http://127.0.0.1:1");
    let output = nobody.run(&["sandbox", "ls"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("pandastack serve"), "{}", stderr(&output));
    let output = nobody.run(&["sandbox", "ls", "--json"]).await;
    let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert!(error["hint"].as_str().unwrap().contains("pandastack serve"));
    assert_eq!(stdout(&output), "");
}

#[tokio::test]
async fn what_a_sandbox_may_reach_is_shown_and_set() {
    let (fake, program) = pair().await;
    let pypi = serde_json::json!({"allow": [{"host": "pypi.org"}]});
    let shown =
        |output: &std::process::Output| -> Value { serde_json::from_str(&stdout(output)).unwrap() };
    let output = program.run(&["sandbox", "egress", "1b9d"]).await;
    assert_eq!(shown(&output), pypi);
    assert!(fake.bodies().is_empty(), "to look changes nothing");
    let rules = ["--allow", "PyPI.org:443", "--allow", "203.0.113.0/24"];
    let output = program.run(&[&["sandbox", "egress", "1b9d"], &rules[..]].concat()).await;
    let set = serde_json::json!(
        {"allow": [{"host": "pypi.org", "ports": [443]}, {"cidr": "203.0.113.0/24"}]}
    );
    assert_eq!((shown(&output), &fake.bodies()[0]), (set.clone(), &set));
    let policy = r#"{"allow":[{"host":"*"}],"max_connections":10}"#;
    program.run(&["sandbox", "egress", "1b9d", "--policy", policy]).await;
    assert_eq!(fake.bodies()[1].to_string(), policy);
    let output = program.run(&["sandbox", "egress", "1b9d", "--none"]).await;
    assert_eq!((shown(&output), &fake.bodies()[2]), ("none".into(), &"none".into()));
    let asked = fake.requests();
    assert_eq!(
        asked.iter().filter(|asked| asked.ends_with(&format!("{}/egress", IDS[0]))).count(),
        4
    );
    let output = program.run(&["sandbox", "egress", "1b9d", "--allow", "1.1.1.1"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("write 1.1.1.1/32"), "{}", stderr(&output));
    assert_eq!(fake.requests(), asked, "nobody was asked");
}

#[tokio::test]
async fn a_sandbox_is_created_with_what_it_may_reach() {
    let (fake, program) = pair().await;
    program.run(&["sandbox", "create"]).await;
    program.run(&["sandbox", "create", "--allow", "pypi.org"]).await;
    program.run(&["sandbox", "create", "--egress", "none"]).await;
    program.run(&["sandbox", "fork", "1b9d", "--allow", "pypi.org"]).await;
    program.run(&["run", "--allow", "pypi.org", "--", "fail"]).await;
    let egress: Vec<_> = fake.bodies().iter().map(|body| body["egress"].clone()).collect();
    let pypi = serde_json::json!({"allow": [{"host": "pypi.org"}]});
    // The last is the command that was run.
    let expected = [Value::Null, pypi.clone(), "none".into(), pypi.clone(), pypi, Value::Null];
    assert_eq!(egress, expected);
}

#[tokio::test]
async fn decisions_are_lines_for_people_or_for_programs() {
    let (fake, program) = pair().await;
    let output =
        program.run(&["sandbox", "egress-log", "1b9d", "--tail", "5", "--after", "0"]).await;
    let line = stdout(&output);
    assert!(line.starts_with("2026-01-02T03:04:05Z  deny   dns    1.test  "), "{line}");
    assert!(line.ends_with("no rule allows this name\n"), "{line}");
    let path = format!("GET /v1/sandboxes/{}/egress/log?tail=5&after=0", IDS[0]);
    assert!(fake.requests().contains(&path), "{:?}", fake.requests());
    let output = program.run(&["sandbox", "egress-log", "1b9d", "--follow", "--json"]).await;
    let lines = stdout(&output);
    let numbers = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 2]);
}
