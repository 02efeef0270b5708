//! ClientHellos by hand, for clients that no library is.

/// A ClientHello with these names in its server name extension, and more extensions.
pub fn client_hello(names: &[&str], more: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut extensions = Vec::new();
    for name in names {
        let name = name.as_bytes();
        let mut list = vec![0];
        list.extend((name.len() as u16).to_be_bytes());
        list.extend_from_slice(name);
        extension(&mut extensions, 0, &[&(list.len() as u16).to_be_bytes()[..], &list].concat());
    }
    // TLS 1.3 and 1.2, one group, one algorithm: enough to be taken for a client.
    extension(&mut extensions, 43, &[4, 3, 4, 3, 3]);
    extension(&mut extensions, 10, &[0, 2, 0, 29]);
    extension(&mut extensions, 13, &[0, 4, 4, 3, 8, 4]);
    let share = [&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat();
    extension(&mut extensions, 51, &share);
    for (kind, data) in more {
        extension(&mut extensions, *kind, data);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 4, 0x13, 0x01, 0xc0, 0x2b, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// A handshake in records of at most `size` bytes.
pub fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    handshake.chunks(size).flat_map(record).collect()
}

/// The extension of encrypted ClientHello, as an outer one has it.
pub fn encrypted() -> (u16, Vec<u8>) {
    let mut data = vec![0, 0, 1, 0, 1, 7, 0, 32];
    data.extend([5; 32]);
    data.extend([0, 64]);
    data.extend([6; 64]);
    (0xfe0d, data)
}

fn extension(all: &mut Vec<u8>, kind: u16, data: &[u8]) {
    all.extend(kind.to_be_bytes());
    all.extend((data.len() as u16).to_be_bytes());
    all.extend_from_slice(data);
}
