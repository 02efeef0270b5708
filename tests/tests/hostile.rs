//! Guests that try everything. The host answers clearly, stays up, and keeps nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use pandastack_tests::{Options, Sandbox, Server, machines_below, wait_until};
use serde_json::json;

fn server() -> Result<Server> {
    Server::start(Options::default())
}

/// The server works, and after deleting `sandbox` nothing of it is left.
fn assert_clean(server: &Server, sandbox: &Sandbox) -> Result<()> {
    let status = sandbox.delete()?.status;
    assert!(status == 204, "delete answered {status}");
    assert!(
        wait_until(Duration::from_secs(10), || machines_below(server.pid()) == 0
            && server.machine_dirs() == 0),
        "{} machines, {} directories",
        machines_below(server.pid()),
        server.machine_dirs()
    );
    let fresh = server.client().base()?;
    assert_eq!(fresh.output("echo alive")?, "alive\n");
    fresh.delete()?;
    Ok(())
}

#[test]
fn removing_every_file_leaves_a_sandbox_that_answers() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let _ = sandbox.try_exec("rm -rf --no-preserve-root / 2>/dev/null; true", 60)?;
    let answer = sandbox.try_exec("echo hi", 10)?;
    // There is no shell any more: a clear result, not a hang and not a lost sandbox.
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["exit_code"], 127, "{}", answer.text());
    assert_eq!(sandbox.status()?, "running");
    assert_clean(&server, &sandbox)
}

#[test]
fn killing_every_process_leaves_a_sandbox_that_answers() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    for line in ["kill -9 -1", "kill -9 1", "kill -STOP 1; kill -TERM 1"] {
        sandbox.try_exec(line, 10)?;
        assert_eq!(sandbox.output("echo still here")?, "still here\n", "after {line}");
    }
    assert_clean(&server, &sandbox)
}

#[test]
fn a_fork_bomb_ends_with_its_exec() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let answer = sandbox.try_exec(":(){ :|:& };: ; sleep 100", 5)?;
    assert!(answer.status >= 500 && answer.error().contains("timeout"), "{}", answer.text());
    assert_eq!(sandbox.output("echo calm")?, "calm\n");
    assert_clean(&server, &sandbox)
}

#[test]
fn a_memory_bomb_kills_itself_and_not_the_agent() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let bomb = "python3 -c 'a = []\nwhile True: a.append(bytearray(10 << 20))'";
    let answer = sandbox.try_exec(bomb, 120)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_ne!(answer.json()["exit_code"], 0);
    assert_eq!(sandbox.output("echo calm")?, "calm\n");
    assert_clean(&server, &sandbox)
}

#[test]
fn a_disk_filler_gets_an_error_and_its_space_comes_back() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    // Room that is taken without being written comes first: the end of the disk is what matters.
    let line = "free=$(df --output=avail -m /root | tail -n 1); \
                fallocate -l $((free - 64))M /root/most; cat /dev/zero > /root/big; \
                rm /root/most /root/big; echo room";
    let answer = sandbox.try_exec(line, 280)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let result = answer.json();
    assert!(result["stderr"].as_str().unwrap_or_default().contains("No space left"), "{result}");
    assert_eq!(result["stdout"], "room\n");
    assert_clean(&server, &sandbox)
}

#[test]
fn endless_output_is_cut_and_the_server_stays_small() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let answer = sandbox.try_exec("yes | head -c 10000000000", 10)?;
    assert!(answer.status >= 500 && answer.error().contains("timeout"), "{}", answer.text());
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    assert!(resident < 300 << 10, "the server holds {resident} KiB");
    assert_eq!(sandbox.output("echo on")?, "on\n");
    assert_clean(&server, &sandbox)
}

#[test]
fn a_megabyte_and_more_of_output_comes_whole_up_to_the_limit() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let result = sandbox.exec("head -c 1048576 /dev/zero | tr '\\0' x")?;
    assert_eq!(result["stdout"].as_str().map(str::len), Some(1 << 20));
    assert!(result.get("truncated").is_none(), "1 MiB is below every limit");
    assert_clean(&server, &sandbox)
}

#[test]
fn a_guest_that_powers_off_or_panics_says_so() -> Result<()> {
    let server = server()?;
    for (line, reason) in [
        ("echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger; sleep 20", "guest_shutdown"),
        ("echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 20", "guest_shutdown"),
        ("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 20", "guest_panic"),
    ] {
        let sandbox = server.client().base()?;
        let answer = sandbox.try_exec(line, 30)?;
        assert!(answer.status >= 400, "{line} answered {}", answer.text());
        assert_eq!(sandbox.end_reason()?, reason, "{line}");
        // A dead guest: clear answers, no retry phrases of the client libraries, deletable.
        let answer = sandbox.try_exec("echo hi", 5)?;
        assert!((400..500).contains(&answer.status), "{}", answer.text());
        assert!(answer.error().contains(reason), "{}", answer.text());
        assert_eq!(sandbox.delete()?.status, 204);
        assert_eq!(sandbox.delete()?.status, 404);
    }
    assert_eq!(machines_below(server.pid()), 0);
    Ok(())
}

#[test]
fn a_killed_machine_is_noticed_and_its_exec_fails() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let running = sandbox.clone();
    let exec = std::thread::spawn(move || running.try_exec("sleep 60", 70));
    let machine = sandbox.pid()?;
    let asleep = || sandbox.output("pgrep -c sleep").is_ok_and(|n| n.trim() == "1");
    assert!(wait_until(Duration::from_secs(10), asleep));
    std::process::Command::new("kill").args(["-9", &machine.to_string()]).status()?;
    let answer = exec.join().expect("no panic")?;
    assert!(answer.status >= 400, "{}", answer.text());
    assert_eq!(sandbox.end_reason()?, "machine_died");
    assert_clean(&server, &sandbox)
}

/// Every published file of every template with its checksum. Another test may add some meanwhile.
fn template_files() -> Result<BTreeMap<String, String>> {
    let dir = pandastack_tests::shared_data().join("templates");
    // Gigabytes, most of them holes, which tar(1) does not read.
    let line = "find roots images bakes -type f -exec \
                sh -c 'echo \"$(tar -c --sparse -f - \"$1\" | cksum | tr \" \" -) $1\"' sh {} \\;";
    let output = std::process::Command::new("sh").current_dir(dir).args(["-c", line]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().filter_map(|line| line.split_once(' '));
    Ok(rows.map(|(sum, file)| (file.to_owned(), sum.to_owned())).collect())
}

#[test]
fn a_tenant_cannot_change_its_template() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let before = template_files()?;
    assert!(before.len() > 4, "{before:?}");
    sandbox.try_exec(
        "for d in /dev/vd*; do dd if=/dev/urandom of=$d bs=1M count=64 conv=notrunc; done; \
         mount -o remount,rw / ; dd if=/dev/zero of=/dev/mem bs=1M count=1; true",
        120,
    )?;
    sandbox.delete()?;
    let after = template_files()?;
    for (file, content) in &before {
        assert_eq!(after.get(file), Some(content), "{file}");
    }
    assert_eq!(server.client().base()?.output("echo intact")?, "intact\n");
    Ok(())
}

#[test]
fn a_flood_of_short_processes_leaves_no_zombies() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    // Orphans on purpose: their parent is gone before they are.
    // A busy host takes minutes for what an idle one does in seconds.
    let flood = sandbox.try_exec("for i in $(seq 200); do (true &) ; done; wait; sleep 1", 300)?;
    assert_eq!(flood.status, 200, "{flood:?}");
    let zombies = sandbox.output("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")?;
    assert_eq!(zombies.trim(), "0");
    assert_clean(&server, &sandbox)
}

#[test]
fn a_timeout_ends_what_left_its_session() -> Result<()> {
    let server = server()?;
    let sandbox = server.client().base()?;
    let answer =
        sandbox.try_exec("setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000", 2)?;
    assert!(answer.status >= 500 && answer.error().contains("timeout"), "{}", answer.text());
    assert_eq!(sandbox.output("pgrep -c sleep; true")?.trim(), "0");
    let json = json!({ "argv": ["sleep", "1000"], "timeout_seconds": 1 });
    let answer = server.client().post(&sandbox.path("/exec"), &json)?;
    assert!(answer.error().contains("timeout"), "{}", answer.text());
    assert_clean(&server, &sandbox)
}
