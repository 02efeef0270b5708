//! What people want a network for: an installation from an index that is allowed by name.

use std::io::Write;

use anyhow::Result;
use pandastack_tests::seconds;
use serde_json::json;

use crate::guest::Probe;
use crate::stage::Stage;

const INDEX: &str = "203.0.113.20";
const FILES: &str = "203.0.113.21";

/// A wheel: an archive of a module and what an installer wants to know of it.
fn wheel() -> Vec<u8> {
    let record = "panda_lab.py,,\npanda_lab-1.0.dist-info/METADATA,,\n\
                  panda_lab-1.0.dist-info/WHEEL,,\npanda_lab-1.0.dist-info/RECORD,,\n";
    archive(&[
        ("panda_lab.py", "ANSWER = 42\n"),
        (
            "panda_lab-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: panda-lab\nVersion: 1.0\n",
        ),
        (
            "panda_lab-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        ("panda_lab-1.0.dist-info/RECORD", record),
    ])
}

/// A zip archive of files that are stored as they are.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut all, mut directory) = (Vec::new(), Vec::new());
    for (name, text) in files {
        let offset = all.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x58];
        common.extend(crc32(text.as_bytes()).to_le_bytes());
        common.extend((text.len() as u32).to_le_bytes());
        common.extend((text.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        all.extend(b"PK\x03\x04");
        all.extend_from_slice(&common);
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(text.as_bytes());
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, count) = (all.len() as u32, files.len() as u16);
    let length = directory.len() as u32;
    all.append(&mut directory);
    all.extend(b"PK\x05\x06\0\0\0\0");
    all.extend(count.to_le_bytes());
    all.extend(count.to_le_bytes());
    all.extend(length.to_le_bytes());
    all.extend(start.to_le_bytes());
    all.extend([0, 0]);
    all
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn an_archive_is_one_to_everybody() -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&wheel())?;
    let read = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                print(z.read('panda_lab.py').decode())";
    let output =
        std::process::Command::new("python3").args(["-c", read]).arg(file.path()).output()?;
    assert_eq!(output.stdout, b"ANSWER = 42\n\n", "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn packages_are_installed_from_an_index_that_is_allowed_by_name() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let page = "<!DOCTYPE html><html><body>\
        <a href=\"http://files.lab/packages/panda_lab-1.0-py3-none-any.whl\">\
        panda_lab-1.0-py3-none-any.whl</a></body></html>";
    let web = stage.lab.web();
    for host in ["pypi.lab", INDEX] {
        web.put(host, "/simple/panda-lab/", page.as_bytes());
    }
    for host in ["files.lab", FILES] {
        web.put(host, "/packages/panda_lab-1.0-py3-none-any.whl", &wheel());
    }
    stage.lab.zone().point("pypi.lab", &[INDEX]);
    stage.lab.zone().point("files.lab", &[FILES]);
    let sandbox = stage.client.create(&json!({
        "template": "code-interpreter", "ttl_seconds": seconds(600), "egress": { "allow": [
            { "host": "pypi.lab", "methods": ["GET"], "paths": ["/simple/"] },
            { "host": "files.lab" },
        ] },
    }))?;
    let install = |host: &str| {
        format!(
            "pip install --break-system-packages --disable-pip-version-check --no-cache-dir \
             --retries 0 --timeout 20 --target /root/site --index-url http://{host}/simple \
             --trusted-host {host} --trusted-host files.lab panda-lab"
        )
    };
    // By its address, which is nobody's name: before and after it is known.
    stage.lab.forget()?;
    let result = sandbox.exec(&install(INDEX))?;
    assert_ne!(result["exit_code"], 0, "{result}");
    crate::stage::nothing(&stage.lab.seen()?)?;
    stage.explains(&sandbox, INDEX, "no allowed name led to this address")?;

    let result = stage.client.post(
        &sandbox.path("/exec"),
        &json!({ "cmd": install("pypi.lab"), "timeout_seconds": seconds(120) }),
    )?;
    assert_eq!(result.json()["exit_code"], 0, "{}", result.text());
    let answer = "PYTHONPATH=/root/site python3 -c 'import panda_lab; print(panda_lab.ANSWER)'";
    assert_eq!(sandbox.output(answer)?, "42\n");
    stage.lab.forget()?;
    let result = sandbox.exec(&install(INDEX))?;
    assert_ne!(result["exit_code"], 0, "{result}");
    crate::stage::nothing(&stage.lab.seen()?)?;
    // The index is for looking things up.
    stage.closed(
        &sandbox,
        &[
            Probe::http(INDEX, "pypi.lab", "/legacy/"),
            Probe::tcp(
                INDEX,
                80,
                b"POST /simple/ HTTP/1.1\r\nHost: pypi.lab\r\nContent-Length: 6\r\n\r\nsecret",
            )
            .with("until", "received="),
        ],
    )?;
    Ok(())
}
