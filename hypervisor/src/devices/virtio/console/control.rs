//! The control queues of a console with several ports (virtio 1.2, section 5.3.6.2): the device
//! tells the driver of its ports, the driver which of them it has and which are open.
//!
//! What the device has to say is kept as a set for each port and not as a list of messages: a driver
//! that asks again and again and supplies no buffer costs no memory.

/// `struct virtio_console_control`: id, event, value.
pub(super) const MESSAGE_BYTES: usize = 8;

/// Driver: it is ready for ports.
pub(super) const DEVICE_READY: u16 = 0;
/// Device: there is a port.
const DEVICE_ADD: u16 = 1;
/// Driver: it has the port.
pub(super) const PORT_READY: u16 = 3;
/// Device: the port is a console.
const CONSOLE_PORT: u16 = 4;
/// Device: the terminal's size follows.
const RESIZE: u16 = 5;
/// Both: the port is open on the sender's side, or not.
pub(super) const PORT_OPEN: u16 = 6;
/// Device: the port's name follows.
const PORT_NAME: u16 = 7;

/// What the driver is to be told of a port, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fact {
    Exists = 1 << 0,
    IsConsole = 1 << 1,
    Name = 1 << 2,
    Connection = 1 << 3,
    Size = 1 << 4,
}

impl Fact {
    /// All, in order.
    const ALL: [Self; 5] = [
        Self::Exists,
        Self::IsConsole,
        Self::Name,
        Self::Connection,
        Self::Size,
    ];
}

/// Facts that the driver has not been told yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Untold(u8);

impl Untold {
    /// `fact` is to be told, once.
    pub(super) fn insert(&mut self, fact: Fact) {
        self.0 |= fact as u8;
    }

    /// The next to tell.
    pub(super) fn first(self) -> Option<Fact> {
        Fact::ALL.into_iter().find(|fact| self.0 & *fact as u8 != 0)
    }

    /// `fact` is told.
    pub(super) fn remove(&mut self, fact: Fact) {
        self.0 &= !(fact as u8);
    }
}

/// What is told of a port.
pub(super) struct Told<'a> {
    pub(super) name: &'a str,
    pub(super) connected: bool,
    /// Columns and rows.
    pub(super) size: (u16, u16),
}

/// The message that tells `fact` of port `id`.
pub(super) fn message(id: u32, fact: Fact, port: &Told<'_>) -> Vec<u8> {
    let (event, value) = match fact {
        Fact::Exists => (DEVICE_ADD, 1),
        Fact::IsConsole => (CONSOLE_PORT, 1),
        Fact::Name => (PORT_NAME, 1),
        Fact::Connection => (PORT_OPEN, u16::from(port.connected)),
        Fact::Size => (RESIZE, 0),
    };
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    match fact {
        Fact::Name => bytes.extend(port.name.as_bytes()),
        Fact::Size => {
            // The specification has the columns first; Linux, and the devices it has met, the rows.
            bytes.extend(port.size.1.to_le_bytes());
            bytes.extend(port.size.0.to_le_bytes());
        }
        _ => {}
    }
    bytes
}

/// Port, event and value of a message.
pub(super) fn parse(bytes: &[u8; MESSAGE_BYTES]) -> (u32, u16, u16) {
    let [a, b, c, d, e, f, g, h] = *bytes;
    (
        u32::from_le_bytes([a, b, c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_told_once_and_in_order() {
        let mut untold = Untold::default();
        for fact in [Fact::Size, Fact::Exists, Fact::Exists, Fact::Name] {
            untold.insert(fact);
        }
        let mut told = Vec::new();
        while let Some(fact) = untold.first() {
            told.push(fact);
            untold.remove(fact);
        }
        assert_eq!(told, [Fact::Exists, Fact::Name, Fact::Size]);
    }

    #[test]
    fn messages_have_the_layout_of_the_specification() {
        let port = Told {
            name: "agent",
            connected: false,
            size: (132, 50),
        };
        let mut named = [2, 0, 0, 0, 7, 0, 1, 0].to_vec();
        named.extend(b"agent");
        assert_eq!(message(2, Fact::Name, &port), named);
        let closed = [0x01, 0x02, 0, 0, 6, 0, 0, 0];
        assert_eq!(message(0x201, Fact::Connection, &port), closed);
        let resized = [0, 0, 0, 0, 5, 0, 0, 0, 50, 0, 132, 0];
        assert_eq!(message(0, Fact::Size, &port), resized);
        assert_eq!(parse(&closed), (0x201, PORT_OPEN, 0));
    }
}
