//! What needs no server, and what a server refuses before it starts.

use crate::program::{Program, stderr, stdout};

#[tokio::test]
async fn the_version_is_told() {
    let program = Program::alone();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(stdout(&program.run(&["version"]).await), format!("pandastack {version}\n"));
    let json = stdout(&program.run(&["version", "--json"]).await);
    assert!(json.contains(&format!("\"version\": \"{version}\"")), "{json}");
}

#[tokio::test]
async fn nonsense_is_a_usage_error() {
    let program = Program::alone();
    for line in [&["walk"][..], &["run"], &["sandbox", "exec", "1b9d"], &["template", "build"]] {
        assert_eq!(program.run(line).await.status.code(), Some(2), "{line:?}");
    }
}

#[tokio::test]
async fn a_server_refuses_what_it_should_not_do() {
    let program = Program::alone();
    let data = tempfile::tempdir().unwrap();
    let data = data.path().to_str().unwrap();
    let mut refused = vec![
        (vec!["serve", "--data-dir", data, "--listen", "0.0.0.0:0"], "--api-key-file"),
        (vec!["serve", "--data-dir", data, "--api-key-file", "/nonexistent"], "/nonexistent"),
    ];
    if !pandastack_engine::kvm::probe().is_promising() {
        refused.push((vec!["serve", "--data-dir", data, "--engine", "kvm"], "/dev/kvm"));
    }
    for (line, words) in refused {
        let output = program.run(&line).await;
        assert_eq!(output.status.code(), Some(125), "{line:?}");
        assert!(stderr(&output).contains(words), "{line:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(data).unwrap().count(), 0, "nothing was made");
}

#[tokio::test]
async fn a_named_server_that_is_gone_is_an_error_and_not_a_surprise() {
    let program = Program::of("http://127.0.0.1:1");
    let output = program.run(&["run", "--", "true"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("PANDASTACK_API"), "{}", stderr(&output));
}

#[tokio::test]
async fn doctor_leaves_no_trace_and_reports_to_programs() {
    let program = Program::alone();
    let data = program.home().join("data");
    let output = program.run(&["doctor", "--json", "--data-dir", data.to_str().unwrap()]).await;
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ready = report["ready"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if ready { 0 } else { 1 }));
    assert!(report["checks"].as_array().unwrap().len() > 8);
    assert!(!data.exists());
}
