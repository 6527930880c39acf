//! Vsock packets: from and to nobody, of kinds there are not, beyond what either side has credit for.

use crate::attacker::{Attacker, DATA, RINGS, ROOM};
use crate::honest::{PACKET, Packet, request};
use crate::queue::{QUEUE_BYTES, WRITE};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA_PACKET: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// A port of the host that accepts.
const PORT: u32 = 80;
/// Most bytes of a packet, and all that the host holds for a guest.
const BUFFER: u32 = 0x1_0000;

pub(super) fn all(attacker: &mut Attacker<'_>) {
    let cid = u64::from(attacker.device.config_word(0));
    attacker.phase("packets");
    let good = request(cid, PORT);
    let mut one = |packet: Packet| attacker.request(TRANSMIT, &packet.to_bytes(), 0);
    for op in [0, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xffff] {
        for kind in [0, 1, 2, 0xffff] {
            one(Packet { op, kind, ..good });
        }
    }
    for own in [0, 1, 2, cid + 1, u64::MAX, cid | 1 << 32] {
        for host in [0, 1, 2, 3, cid, u64::MAX, 2 | 1 << 32] {
            one(Packet {
                cids: [own, host],
                ..good
            });
        }
    }
    for ports in [
        [0, 0],
        [u32::MAX; 2],
        [u32::MAX - 1, u32::MAX],
        [0, 1 << 30],
    ] {
        for op in [REQUEST, RESPONSE, RESET, DATA_PACKET] {
            one(Packet { ports, op, ..good });
        }
    }
    for len in [1, 64, BUFFER, BUFFER + 1, u32::MAX] {
        for op in [REQUEST, DATA_PACKET] {
            one(Packet { len, op, ..good });
        }
    }
    for len in [1, 24, 43] {
        let bytes = good.to_bytes();
        attacker.request(TRANSMIT, bytes.get(..len).unwrap_or_default(), 0);
    }
    for room in [1, 43, 44] {
        attacker.request(TRANSMIT, &good.to_bytes(), room);
        for queue in [RECEIVE, 2] {
            attacker.request(queue, &[], room);
        }
    }
    attacker.phase("conversations");
    for ops in [
        // Twice, answered by oneself, ended before it began.
        &[REQUEST, REQUEST][..],
        &[REQUEST, RESPONSE, RESPONSE],
        &[REQUEST, RESET, DATA_PACKET, RESET],
        &[REQUEST, DATA_PACKET, DATA_PACKET, DATA_PACKET],
        // Beyond the credit, and after the end.
        &[
            REQUEST,
            0,
            DATA_PACKET,
            DATA_PACKET,
            DATA_PACKET,
            DATA_PACKET,
        ],
        &[REQUEST, 0, SHUTDOWN, DATA_PACKET, SHUTDOWN],
        &[REQUEST, 0, CREDIT_REQUEST, CREDIT_UPDATE, CREDIT_REQUEST],
        &[REQUEST, 0, RESPONSE, REQUEST, RESET, RESET],
    ] {
        for credit in [[0, 0], [u32::MAX, u32::MAX], [BUFFER, u32::MAX / 2]] {
            converse(attacker, Packet { credit, ..good }, ops);
        }
    }
    floods(attacker, good);
}

/// Sends a packet of each of `ops`; at 0 it waits for an answer.
fn converse(attacker: &mut Attacker<'_>, packet: Packet, ops: &[u16]) {
    let (device, memory) = (attacker.device, attacker.memory);
    if device.negotiate()
        && let Some(mut receive) = attacker.prepare_at(RECEIVE, RINGS, false)
        && let Some(mut transmit) = attacker.prepare_at(TRANSMIT, RINGS + QUEUE_BYTES, false)
    {
        device.start();
        for slot in 0..6 {
            let room = memory.start + ROOM + slot * 0x1000;
            receive.submit(device, memory, &[(room, 0x1000, WRITE)]);
        }
        let mut sent = 0;
        for op in ops {
            if *op == 0 {
                receive.wait(device, memory, 1);
                continue;
            }
            let len = if *op == DATA_PACKET { BUFFER } else { 0 };
            let flags = u32::MAX;
            let packet = Packet {
                op: *op,
                len,
                flags,
                ..packet
            };
            memory.put_bytes(DATA, &packet.to_bytes());
            transmit.submit(
                device,
                memory,
                &[(memory.start + DATA, PACKET as u32 + len, 0)],
            );
            sent += 1;
            transmit.wait(device, memory, sent);
        }
        attacker.await_answer(&transmit);
    }
    attacker.recover();
}

/// More connections than there may be, more refusals than are held, from a guest that reads nothing.
fn floods(attacker: &mut Attacker<'_>, packet: Packet) {
    attacker.phase("floods");
    let (device, memory) = (attacker.device, attacker.memory);
    for (op, port) in [(REQUEST, PORT), (REQUEST, PORT + 1), (DATA_PACKET, PORT)] {
        if let Some(mut transmit) = attacker.prepare(TRANSMIT) {
            for number in 0..600u16 {
                let ports = [1000 + u32::from(number), port];
                let packet = Packet {
                    op,
                    ports,
                    ..packet
                };
                memory.put_bytes(DATA, &packet.to_bytes());
                transmit.submit(device, memory, &[(memory.start + DATA, PACKET as u32, 0)]);
                // No more than the queue holds, until the device takes no more.
                if number >= 7 && !transmit.returned(memory, number - 6) {
                    break;
                }
            }
            attacker.await_answer(&transmit);
        }
        attacker.recover();
    }
}
