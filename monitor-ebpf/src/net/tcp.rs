//! The examined parts of TCP packets.

use aya_ebpf::programs::SkBuffContext;

pub const TCP: u8 = 6;

/// The examined parts of a TCP packet.
pub struct TcpPacket {
    pub sequence: u32,
    /// Offset of the payload.
    pub payload: usize,
}

impl TcpPacket {
    #[inline(always)]
    pub fn parse(ctx: &SkBuffContext) -> Option<Self> {
        let start: [u8; 20] = ctx.load(0).ok()?;
        let at = match start[0] >> 4 {
            4 if start[9] == TCP => usize::from(start[0] & 15) * 4,
            6 if start[6] == TCP => 40,
            _ => return None,
        };
        let header: [u32; 4] = ctx.load(at).ok()?;
        let words = u32::from_be(header[3]) >> 28;
        Some(Self {
            sequence: u32::from_be(header[1]),
            payload: at + words as usize * 4,
        })
    }
}
