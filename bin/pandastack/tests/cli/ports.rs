//! `pandastack sandbox ports`, `expose`, `unexpose` and `url`.

use serde_json::Value;

use crate::fake::{Fake, IDS};
use crate::program::{Program, stderr, stdout};

#[tokio::test]
async fn ports_are_listed_with_their_addresses() {
    let fake = Fake::start().await;
    let program = Program::of(fake.url());
    let output = program.run(&["sandbox", "ports", "1b9d"]).await;
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 3, "{text}{}", stderr(&output));
    assert!(text.contains("http://8000.test:7878"), "{text}");
    assert!(text.contains("public") && text.contains("private"), "{text}");
    let output = program.run(&["sandbox", "ports", "1b9d", "--json"]).await;
    let listed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(listed[0]["port"], 80);
}

#[tokio::test]
async fn a_port_is_public_only_when_that_is_said() {
    let fake = Fake::start().await;
    let program = Program::of(fake.url());
    let output = program.run(&["sandbox", "expose", IDS[0], "8000"]).await;
    assert_eq!(stdout(&output), "http://8000.test:7878\n", "{}", stderr(&output));
    let line = ["sandbox", "expose", IDS[0], "8000", "--public", "--label", "web"];
    program.run(&line).await;
    let bodies = fake.bodies();
    assert_eq!(bodies[0], serde_json::json!({ "port": 8000, "public": false }));
    let public = serde_json::json!({ "port": 8000, "public": true, "label": "web" });
    assert_eq!(bodies[1], public);
    let output = program.run(&["sandbox", "unexpose", IDS[0], "8000"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fake.requests().contains(&format!("DELETE /v1/sandboxes/{}/ports/8000", IDS[0])));
    for port in ["0", "65536", "x"] {
        let output = program.run(&["sandbox", "expose", IDS[0], port]).await;
        assert_eq!(output.status.code(), Some(2), "{port}");
    }
}

#[tokio::test]
async fn an_address_that_opens_a_port_is_all_that_is_printed() {
    let fake = Fake::start().await;
    let program = Program::of(fake.url());
    let line = ["sandbox", "url", IDS[0], "8000", "--ttl", "60", "--path", "/a"];
    let output = program.run(&line).await;
    assert_eq!(stdout(&output), "http://8000.test:7878/?token=t\n", "{}", stderr(&output));
    let body = serde_json::json!({ "port": 8000, "ttl_seconds": 60, "paths": ["/a"] });
    assert_eq!(fake.bodies()[0], body);
    let output = program.run(&["sandbox", "url", IDS[0], "8000", "--json"]).await;
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(printed["url"], "http://api.test/p/t/");
    let output = program.run(&["sandbox", "url", IDS[0], "8000", "--ttl", "604801"]).await;
    assert_eq!(output.status.code(), Some(2));
}
