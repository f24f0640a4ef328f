//! HTTP/2 settings that both sides of the proxy share, and why each has its value.

use http::HeaderMap;

/// Receive window of one stream of a client's, until something on its connection is bound: what one call
/// may send while nobody reads it. A first message is read as it comes, and is seldom larger.
pub const UNBOUND_STREAM_WINDOW: u32 = 64 << 10;

/// Receive window of a client's connection until something on it is bound: room for sixteen calls that
/// nobody reads, as later. With less, one such call would keep the Solve of another from coming.
pub const UNBOUND_CONNECTION_WINDOW: u32 = 1 << 20;

/// Receive window of one stream: what one sender may have in flight that nobody has read yet.
///
/// On loopback the rate no longer grows above this; across zones 1 MiB still fills 1 GB/s at 1 ms.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// Receive window of one connection: room for sixteen streams that nobody reads, so that a stuck
/// reader of one stream does not stall the others of its build.
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// Receive window of one stream on a connection that calls of many clients share.
///
/// Smaller than [`STREAM_WINDOW`], because it is what each call that its client does not read takes
/// of [`SHARED_CONNECTION_WINDOW`]. History and blobs still get 256 MB/s at 1 ms.
pub const SHARED_STREAM_WINDOW: u32 = 256 << 10;

/// Receive window of a connection that calls of many clients share: room for 256 calls whose clients
/// have stopped reading. So many share it and no more, so that none waits behind them.
pub const SHARED_CONNECTION_WINDOW: u32 = 64 << 20;

/// What the library may queue for one stream before it stops pulling from the other side.
pub const SEND_BUFFER_LEN: usize = 256 << 10;

/// A client's metadata above this is answered with an error of the proxy's own.
///
/// BuildKit's clients send one or two KiB; what hops in front add, tokens among it, they bound themselves,
/// mostly to 8 or 32 KiB.
pub const HEADER_LIST_LEN: usize = 64 << 10;

/// A client's header list above this is refused by the HTTP/2 library itself, and by a gRPC client before
/// it is sent.
pub const HARD_HEADER_LIST_LEN: u32 = 128 << 10;

/// Headers or trailers of a daemon above this are answered with an error of the proxy's own.
///
/// An error's details carry the whole Dockerfile, in base64 of base64: 2.3 MB of it pass.
pub const TRAILER_LIST_LEN: usize = 4 << 20;

/// What a daemon is told, and the HTTP/2 library, of the longest header list.
///
/// Far above [`TRAILER_LIST_LEN`], because the library allows so many frames for a list as it would
/// take in frames of [`FRAME_LEN`], and a quarter more, while a daemon cuts it into frames of 16 KiB:
/// 1 280 of those are 20 MiB. What is above that ends its connection. A client of a daemon takes 16 MiB,
/// so any error that it could show comes as far as to be measured.
pub const DAEMON_HEADER_LIST_LEN: u32 = 64 << 20;

/// Concurrent streams of one connection. Each target of a bake holds four; grpc-go queues silently
/// above the limit, which would deadlock a large bake.
pub const MAX_STREAMS: u32 = 10_000;

/// Streams that a client may open and reset before they are accepted. grpc-go and HTTP/2 hops cancel
/// in bursts; above this the connection is closed (CVE-2023-44487).
pub const PENDING_RESETS: usize = 1_000;

/// Largest payload of a frame that is received, and of what `io` makes of smaller ones: each frame costs
/// the HTTP/2 library the same. No more, or it would have left the CPU's cache before it is sent on.
pub const FRAME_LEN: u32 = 64 << 10;

/// Size of a header list as HTTP/2 counts it (RFC 9113 section 6.5.2).
pub fn header_list_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}
