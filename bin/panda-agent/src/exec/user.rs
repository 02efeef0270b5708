//! Users of the guest, from `/etc/passwd` and `/etc/group` alone.
//!
//! No NSS: the agent is static, and a lookup must not load what a tenant wrote.

use pandastack_proto::{ErrorCode, Failure};

use crate::failure::refuse;
use crate::files;
use crate::sys::Credentials;

/// Most bytes read of either file.
const MAX_FILE: u64 = 1 << 20;

/// An account.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub home: String,
    pub shell: String,
    pub credentials: Credentials,
}

/// Finds an account by name, or by uid when `wanted` is a number. Root always exists, also when
/// the files do not.
pub fn find(wanted: &str) -> Result<User, Failure> {
    let passwd = read("/etc/passwd");
    let mut user = parse_passwd(&passwd, wanted)
        .or_else(|| matches!(wanted, "root" | "0").then(root))
        .ok_or_else(|| refuse(ErrorCode::NotFound, format!("no user {wanted:?} in this guest")))?;
    // Root needs no group to be allowed something, so the common case saves reading a file.
    if user.credentials.uid != 0 {
        user.credentials.groups = parse_group(&read("/etc/group"), &user);
    }
    Ok(user)
}

fn root() -> User {
    User {
        name: "root".into(),
        home: "/root".into(),
        shell: "/bin/sh".into(),
        credentials: Credentials { uid: 0, gid: 0, groups: vec![0] },
    }
}

/// A missing or unreadable file has no users.
fn read(path: &str) -> String {
    let bytes = files::read_start(path, MAX_FILE).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse_passwd(text: &str, wanted: &str) -> Option<User> {
    let number: Option<u32> = wanted.parse().ok();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        let shell = fields.next().unwrap_or_default();
        (name == wanted || number == Some(uid)).then(|| User {
            name: name.to_owned(),
            home: if home.starts_with('/') { home } else { "/" }.to_owned(),
            shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
            credentials: Credentials { uid, gid, groups: vec![gid] },
        })
    })
}

/// The account's own group and those that list it.
fn parse_group(text: &str, user: &User) -> Vec<u32> {
    let mut groups = vec![user.credentials.gid];
    groups.extend(text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let gid: u32 = fields.nth(2)?.parse().ok()?;
        let member = fields.next()?.split(',').any(|name| name == user.name);
        (member && gid != user.credentials.gid).then_some(gid)
    }));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbad line\n\
                          web:x:33:34:w,,,:/var/www:/usr/sbin/nologin\nx:x:1:1::rel:\n";

    #[test]
    fn accounts_are_found_by_name_and_number() {
        let web = parse_passwd(PASSWD, "web").unwrap();
        assert_eq!(
            (web.home.as_str(), web.credentials.uid, web.credentials.gid),
            ("/var/www", 33, 34)
        );
        assert_eq!(parse_passwd(PASSWD, "33"), Some(web));
        assert_eq!(parse_passwd(PASSWD, "root").unwrap().shell, "/bin/bash");
        assert_eq!(parse_passwd(PASSWD, "we"), None);
        let odd = parse_passwd(PASSWD, "x").unwrap();
        assert_eq!((odd.home.as_str(), odd.shell.as_str()), ("/", "/bin/sh"));
    }

    #[test]
    fn groups_are_those_that_list_the_account() {
        let web = parse_passwd(PASSWD, "web").unwrap();
        let text = "root:x:0:\nweb:x:34:web\ndev:x:50:a,web,b\nno:x:51:webby\nbad\n";
        assert_eq!(parse_group(text, &web), [34, 50]);
    }
}
