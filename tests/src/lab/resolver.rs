//! The fake resolver: DNS by UDP and TCP, every question noted before it is answered.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::sleep;

use super::journal::{Journal, Query};
use super::zone::{Manner, Zone, read_name};

/// Longest answer by UDP.
const MAX_DATAGRAM: usize = 1232;

/// Answers the datagrams of one socket for ever.
pub async fn datagrams(socket: UdpSocket, journal: Journal, zone: Zone) {
    let socket = std::sync::Arc::new(socket);
    let Ok(server) = socket.local_addr() else { return };
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is a complaint about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let raw = buffer[..length].to_vec();
        journal.datagram(server, &raw);
        let (socket, journal, zone) = (socket.clone(), journal.clone(), zone.clone());
        tokio::spawn(async move {
            if let Some(answer) = answer(&raw, false, server, &journal, &zone).await {
                let _ = socket.send_to(&answer, client).await;
            }
        });
    }
}

/// Answers the questions of one connection, of which `head` has been read already.
pub async fn stream(
    mut stream: TcpStream,
    server: SocketAddr,
    journal: &Journal,
    connection: u64,
    zone: &Zone,
) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut raw = vec![0; length.into()];
        stream.read_exact(&mut raw).await?;
        journal.said(connection, &raw);
        if let Some(answer) = answer(&raw, true, server, journal, zone).await {
            stream.write_u16(answer.len() as u16).await?;
            stream.write_all(&answer).await?;
        }
    }
}

async fn answer(
    raw: &[u8],
    tcp: bool,
    server: SocketAddr,
    journal: &Journal,
    zone: &Zone,
) -> Option<Vec<u8>> {
    let (name, end) = read_name(raw, 12)?;
    let kind = u16::from_be_bytes([*raw.get(end)?, *raw.get(end + 1)?]);
    let question = raw.get(12..end + 4)?;
    journal.query(Query { name: name.clone(), kind, tcp, server, raw: raw.to_vec() });
    let manner = zone.manner(&name);
    let mut id = [raw[0], raw[1]];
    let mut question = question.to_vec();
    match manner {
        Manner::Silent => return None,
        Manner::Garbage => return Some(vec![0xff; 40]),
        Manner::Refuses => return Some(head(id, 5, 0, &question)),
        Manner::Late(delay) => sleep(delay).await,
        Manner::Truncated if !tcp => {
            let mut head = head(id, 0, 0, &question);
            head[2] |= 2;
            return Some(head);
        }
        Manner::WrongId => id[0] ^= 0xff,
        Manner::WrongQuestion => question[1] ^= 1,
        Manner::Proper | Manner::Truncated => {}
    }
    let Some(records) = zone.answer(&name, kind) else {
        return Some(head(id, 3, 0, &question));
    };
    let mut message = head(id, 0, records.len() as u16, &question);
    for (owner, ttl, record) in records {
        message.extend(super::zone::wire_name(&owner));
        message.extend(record.kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend((record.data.len() as u16).to_be_bytes());
        message.extend(record.data);
    }
    if !tcp && message.len() > MAX_DATAGRAM {
        let mut head = head(id, 0, 0, &question);
        head[2] |= 2;
        return Some(head);
    }
    Some(message)
}

/// An answer with a code, to which records may be added.
fn head(id: [u8; 2], code: u8, answers: u16, question: &[u8]) -> Vec<u8> {
    let mut message = vec![id[0], id[1], 0x81, 0x80 | code, 0, 1];
    message.extend(answers.to_be_bytes());
    message.extend([0, 0, 0, 0]);
    message.extend_from_slice(question);
    message
}
