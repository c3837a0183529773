//! The examined parts of TCP packets.

use aya_ebpf::programs::SkBuffContext;

pub const TCP: u8 = 6;

/// The examined parts of a TCP packet.
pub struct TcpPacket {
    pub sequence: u32,
    /// It is addressed to loopback: the destination of the connection, or what the machine's own rules
    /// made of it.
    pub to_loopback: bool,
    /// Offset of the payload.
    pub payload: usize,
}

impl TcpPacket {
    #[inline(always)]
    pub fn parse(ctx: &SkBuffContext) -> Option<Self> {
        let start: [u8; 20] = ctx.load(0).ok()?;
        let (at, to_loopback) = match start[0] >> 4 {
            4 if start[9] == TCP => (usize::from(start[0] & 15) * 4, start[16] == 127),
            6 if start[6] == TCP => {
                let to: [u64; 2] = ctx.load(24).ok()?;
                (40, to == [0, u64::to_be(1)])
            }
            _ => return None,
        };
        let header: [u32; 4] = ctx.load(at).ok()?;
        let words = u32::from_be(header[3]) >> 28;
        Some(Self {
            sequence: u32::from_be(header[1]),
            to_loopback,
            payload: at + words as usize * 4,
        })
    }
}
