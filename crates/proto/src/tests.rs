//! Properties of the codec as a whole.

use proptest::prelude::*;

use crate::*;

/// Something to send, with what it should come out as.
#[derive(Clone, Debug)]
enum Sent {
    Request(u32, Request),
    Data(u32, Channel, Vec<u8>),
    Eof(u32, Channel),
    Credit(u32, u32),
    Reset(u32),
}

fn channel() -> impl Strategy<Value = Channel> {
    (0_u8..6).prop_map(|byte| Channel::from_byte(byte).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

fn request() -> impl Strategy<Value = Request> {
    let exec = (text(), proptest::collection::vec((text(), text()), 0..5), any::<Option<u64>>());
    prop_oneof![
        Just(Request::Ping),
        any::<u64>().prop_map(|unix_ns| Request::SetClock { unix_ns }),
        any::<u16>().prop_map(|port| Request::Dial { port }),
        (any::<u8>(), text(), any::<u64>(), any::<bool>()).prop_map(
            |(slot, name, bytes, read_only)| Request::MountVolume { slot, name, bytes, read_only }
        ),
        any::<bool>().prop_map(|unmount| Request::FlushVolumes { unmount }),
        (text(), any::<u64>(), any::<Option<u64>>())
            .prop_map(|(path, offset, len)| Request::Read { path, offset, len }),
        exec.prop_map(|(line, env, timeout_ms)| {
            Request::Exec(ExecSpec { shell: Some(line), env, timeout_ms, ..ExecSpec::default() })
        }),
    ]
}

/// Bytes in which the mark is likely, whole and in parts.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        (0..=MAGIC.len()).prop_map(|n| MAGIC[..n].to_vec()),
        (0..=MAGIC.len()).prop_map(|n| MAGIC[n..].to_vec()),
        (0_usize..3000).prop_map(|n| vec![0xFF; n]),
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        (any::<u32>(), request()).prop_map(|(id, request)| Sent::Request(id, request)),
        (any::<u32>(), channel(), bytes()).prop_map(|(id, c, bytes)| Sent::Data(id, c, bytes)),
        (any::<u32>(), channel()).prop_map(|(id, c)| Sent::Eof(id, c)),
        (any::<u32>(), any::<u32>()).prop_map(|(id, credit)| Sent::Credit(id, credit)),
        any::<u32>().prop_map(Sent::Reset),
    ]
}

/// Encodes as a host does: data split so that the mark never shows.
fn encode(out: &mut Encoder, sent: &Sent) {
    match sent {
        Sent::Request(id, request) => {
            let sealed = Sealed { token: [7; TOKEN_LEN], request: request.clone() };
            out.message(Kind::Request, *id, &sealed).unwrap();
        }
        Sent::Data(id, channel, bytes) => {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = plain_prefix(rest);
                out.data(*id, *channel, &rest[..n]).unwrap();
                rest = &rest[n..];
            }
        }
        Sent::Eof(id, channel) => out.eof(*id, *channel),
        Sent::Credit(id, credit) => out.credit(*id, *credit),
        Sent::Reset(id) => out.reset(*id),
    }
}

/// What a frame says, if it makes sense.
fn understand(frame: &Frame<'_>) -> Option<Sent> {
    let id = frame.stream;
    Some(match frame.kind {
        Kind::Request => Sent::Request(id, parse::<Sealed>(frame.payload, "request").ok()?.request),
        Kind::Data => {
            let (channel, bytes) = frame.channel()?;
            Sent::Data(id, channel, bytes.to_vec())
        }
        Kind::Eof => Sent::Eof(id, frame.channel()?.0),
        Kind::Credit => Sent::Credit(id, frame.credit()?),
        Kind::Reset => Sent::Reset(id),
        Kind::Hello | Kind::Welcome | Kind::Reply | Kind::Ready => return None,
    })
}

/// Takes frames until there is none; an error shows as those that are missing. Returns how often
/// the mark was seen.
fn collect(decoder: &mut Decoder, into: &mut Vec<Sent>) -> usize {
    let mut starts = 0;
    while let Ok(Some(incoming)) = decoder.next() {
        match incoming {
            Incoming::Start => starts += 1,
            Incoming::Frame(frame) => into.extend(understand(&frame)),
        }
    }
    starts
}

/// One piece per run of data, so that splitting does not show.
fn normalise(list: &[Sent]) -> Vec<String> {
    let mut merged: Vec<Sent> = Vec::new();
    for sent in list {
        match (merged.last_mut(), sent) {
            (_, Sent::Data(_, _, bytes)) if bytes.is_empty() => {}
            (Some(Sent::Data(id, channel, all)), Sent::Data(i, c, more))
                if id == i && channel == c =>
            {
                all.extend_from_slice(more);
            }
            _ => merged.push(sent.clone()),
        }
    }
    merged.iter().map(|sent| format!("{sent:?}")).collect()
}

/// Feeds bytes in pieces of the given sizes, over and over.
fn feed(decoder: &mut Decoder, mut bytes: &[u8], sizes: &[usize], into: &mut Vec<Sent>) -> usize {
    let (mut starts, mut sizes) = (0, sizes.iter().cycle());
    while !bytes.is_empty() {
        let space = decoder.space();
        let n = bytes.len().min(space.len()).min(*sizes.next().unwrap());
        space[..n].copy_from_slice(&bytes[..n]);
        decoder.commit(n);
        bytes = &bytes[n..];
        starts += collect(decoder, into);
    }
    starts
}

proptest! {
    /// What a host sends arrives, however the stream is cut, and the mark is seen exactly once.
    #[test]
    fn frames_round_trip(
        list in proptest::collection::vec(sent(), 0..20),
        sizes in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let mut out = Encoder::new();
        out.magic();
        list.iter().for_each(|sent| encode(&mut out, sent));
        let (mut decoder, mut got) = (Decoder::for_agent(), Vec::new());
        let starts = feed(&mut decoder, out.pending(), &sizes, &mut got);
        prop_assert_eq!(starts, 1);
        prop_assert_eq!(normalise(&got), normalise(&list));
    }

    /// A new connection is found behind any part of an old one, and nothing old gets in.
    #[test]
    fn the_agent_finds_the_next_connection(
        old in proptest::collection::vec(sent(), 0..10),
        cut in any::<prop::sample::Index>(),
        sizes in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let mut out = Encoder::new();
        out.magic();
        old.iter().for_each(|sent| encode(&mut out, sent));
        let mut bytes = out.pending()[..cut.index(out.len() + 1)].to_vec();
        let mut fresh = Encoder::new();
        fresh.magic();
        fresh.credit(42, 43);
        bytes.extend_from_slice(fresh.pending());
        let (mut decoder, mut got) = (Decoder::for_agent(), Vec::new());
        feed(&mut decoder, &bytes, &sizes, &mut got);
        prop_assert_eq!(format!("{:?}", got.pop()), "Some(Credit(42, 43))");
        // Bytes of the mark may end a frame that was cut, but never make a request of it.
        let requests = |list: &[Sent]| -> Vec<String> {
            let requests = list.iter().filter(|sent| matches!(sent, Sent::Request(..)));
            requests.map(|sent| format!("{sent:?}")).collect()
        };
        prop_assert!(requests(&old).starts_with(&requests(&got)));
    }

    /// The same for a host, which also must not take the mark alone for the start.
    #[test]
    fn the_host_skips_what_is_stale(
        stale in bytes(),
        random in any::<[u8; NONCE_LEN]>(),
        sizes in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let nonce = nonce_from(random);
        let mut out = Encoder::new();
        out.echo(&nonce);
        out.credit(1, 2);
        let mut bytes = stale;
        bytes.extend_from_slice(out.pending());
        let (mut decoder, mut got) = (Decoder::for_host(&nonce), Vec::new());
        prop_assert_eq!(feed(&mut decoder, &bytes, &sizes, &mut got), 1);
        prop_assert_eq!(format!("{got:?}"), "[Credit(1, 2)]");
    }

    /// Garbage is an error or nothing; the buffer never grows and never runs out of space.
    #[test]
    fn garbage_is_survived(
        junk in proptest::collection::vec(any::<u8>(), 0..5000),
        small in any::<bool>(),
    ) {
        let nonce = nonce_from([1; NONCE_LEN]);
        let mut start = Encoder::new();
        start.echo(&nonce);
        for mut decoder in [Decoder::for_agent(), Decoder::for_host(&nonce)] {
            let mut bytes = start.pending().to_vec();
            // Kinds that exist are more interesting than those that do not.
            bytes.extend(junk.iter().map(|&b| if small { b % 10 } else { b }));
            for chunk in bytes.chunks(777) {
                let space = decoder.space();
                prop_assert!(space.len() >= chunk.len());
                space[..chunk.len()].copy_from_slice(chunk);
                decoder.commit(chunk.len());
                while let Ok(Some(incoming)) = decoder.next() {
                    if let Incoming::Frame(frame) = incoming {
                        prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
                        let _ = parse::<Sealed>(frame.payload, "request");
                        let _ = parse::<Outcome>(frame.payload, "reply");
                        let _ = parse::<Vec<DirEntry>>(frame.payload, "listing");
                    }
                }
            }
        }
    }
}

#[test]
fn lengths_are_refused_before_anything_is_kept() {
    let mut decoder = Decoder::for_agent();
    let mut out = Encoder::new();
    out.magic();
    let mut bytes = out.pending().to_vec();
    bytes.extend_from_slice(&[Kind::Data as u8, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    decoder.space()[..bytes.len()].copy_from_slice(&bytes);
    decoder.commit(bytes.len());
    assert_eq!(decoder.next(), Ok(Some(Incoming::Start)));
    assert_eq!(decoder.next(), Err(DecodeError::Length(u32::MAX)));
    assert_eq!(decoder.next(), Err(DecodeError::Length(u32::MAX)));
}

#[test]
fn a_host_gives_up_on_a_stream_without_a_start() {
    let mut decoder = Decoder::for_host(&nonce_from([0; NONCE_LEN]));
    let mut fed = 0;
    while decoder.next().is_ok() {
        let space = decoder.space();
        space.fill(MAGIC[0]);
        let n = space.len();
        decoder.commit(n);
        fed += n;
        assert!(fed < MAX_STALE + (1 << 20));
    }
    assert_eq!(decoder.next(), Err(DecodeError::NoStart));
}

#[test]
fn the_mark_keeps_its_promises() {
    assert!(MAGIC.iter().all(|&b| b >= 0xF8), "neither text nor header");
    assert!(!MAGIC[1..].contains(&MAGIC[0]), "its first byte is unique");
    assert!(nonce_from([0xFF; NONCE_LEN]).iter().all(|b| !MAGIC.contains(b)));
}

#[test]
fn messages_that_do_not_fit_leave_nothing_behind() {
    let mut out = Encoder::new();
    out.credit(1, 1);
    let before = out.pending().to_vec();
    let long = Request::Mkdir { path: "x".repeat(MAX_PAYLOAD) };
    assert_eq!(out.message(Kind::Request, 2, &long), Err(EncodeError::TooLong));
    assert_eq!(out.data(2, Channel::File, &vec![0; MAX_DATA + 1]), Err(EncodeError::TooLong));
    assert_eq!(out.pending(), before);
}
