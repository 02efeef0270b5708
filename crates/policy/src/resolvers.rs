//! Resolvers that answer to everybody over TLS or HTTPS, by name.
//!
//! Whoever allows `*` means the web. A resolver in it would answer for every name, also those that
//! the policy denies, and carry out what a question can carry. So a wildcard does not open these
//! names, nor [`DNS_OVER_TLS`] under any name; a rule with the very name does. The list cannot be
//! complete, and need not be: addresses that another resolver gives are not pinned, so that no
//! connection by name goes there.

use crate::host::Host;

/// The port where nothing but DNS is spoken, over TLS or QUIC.
pub(crate) const DNS_OVER_TLS: u16 = 853;

/// Names that stand for themselves and for every name below them, where customers have theirs.
const RESOLVERS: &[&str] = &[
    // Google
    "dns.google",
    "dns.google.com",
    "8888.google",
    // Cloudflare
    "cloudflare-dns.com",
    "cloudflare-gateway.com",
    "dns.cloudflare.com",
    "one.one.one.one",
    // Quad9
    "dns.quad9.net",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "dns12.quad9.net",
    "dns-nosec.quad9.net",
    // Cisco
    "dns.opendns.com",
    "doh.opendns.com",
    "dns.umbrella.com",
    "doh.umbrella.com",
    // AdGuard
    "adguard-dns.com",
    "dns.adguard.com",
    "dns-family.adguard.com",
    "dns-unfiltered.adguard.com",
    // Apple
    "doh.dns.apple.com",
    "mask.icloud.com",
    "mask-h2.icloud.com",
    // Others with customers' names below them
    "dns.controld.com",
    "freedns.controld.com",
    "dns.nextdns.io",
    "doh.cleanbrowsing.org",
    "security-filter-dns.cleanbrowsing.org",
    "family-filter-dns.cleanbrowsing.org",
    "adult-filter-dns.cleanbrowsing.org",
    "dns.mullvad.net",
    "doh.mullvad.net",
    // China, Taiwan, Japan
    "dns.alidns.com",
    "doh.pub",
    "dot.pub",
    "dns.pub",
    "doh.360.cn",
    "dot.360.cn",
    "doh.onedns.net",
    "dot.onedns.net",
    "dns.twnic.tw",
    "dns.hinet.net",
    "public.dns.iij.jp",
    // Europe
    "dns0.eu",
    "joindns4.eu",
    "dns.digitale-gesellschaft.ch",
    "dns.switch.ch",
    "odvr.nic.cz",
    "dnsforge.de",
    "doh.ffmuc.net",
    "dot.ffmuc.net",
    "anycast.uncensoreddns.org",
    "unicast.uncensoreddns.org",
    "dns.njal.la",
    "doh.libredns.gr",
    "dot.libredns.gr",
    "doh.applied-privacy.net",
    "dot1.applied-privacy.net",
    "dns.aa.net.uk",
    // Elsewhere
    "dns.sb",
    "dot.sb",
    "doh.sb",
    "doh.li",
    "ordns.he.net",
    "wikimedia-dns.org",
    "private.canadianshield.cira.ca",
    "protected.canadianshield.cira.ca",
    "family.canadianshield.cira.ca",
    "doh.xfinity.com",
    "doh.cox.net",
    "dns.comss.one",
    "doh.tiar.app",
    "dot.tiar.app",
    "surfsharkdns.com",
];

/// Whether a name is a resolver's.
pub(crate) fn is_resolver(name: &Host) -> bool {
    RESOLVERS.iter().any(|own| name.as_str() == *own || name.is_below(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_names_and_each_once() {
        for name in RESOLVERS {
            let host: Host = name.parse().unwrap();
            assert_eq!(host.as_str(), *name);
            let others = RESOLVERS.iter().filter(|own| name == *own || host.is_below(own));
            assert_eq!(others.count(), 1, "{name}");
        }
    }

    #[test]
    fn names_below_are_resolvers_too() {
        for (name, expected) in [
            ("dns.google", true),
            ("abc123.dns.nextdns.io", true),
            ("mozilla.cloudflare-dns.com", true),
            ("google", false),
            ("nextdns.io", false),
            ("xdns.google", false),
        ] {
            assert_eq!(is_resolver(&name.parse().unwrap()), expected, "{name}");
        }
    }
}
