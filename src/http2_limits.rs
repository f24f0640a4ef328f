//! The HTTP/2 settings of both sides of the proxy, and why each has its value.

use http::HeaderMap;

/// The receive window of a stream of a client, as long as nothing on the connection is bound: what one call may
/// send while nobody reads it. A first message is read as it arrives, and is seldom larger.
pub const UNBOUND_STREAM_WINDOW: u32 = 64 << 10;

/// The receive window of a client's connection, as long as nothing on it is bound: enough for sixteen calls that
/// nobody reads. With less, one such call could keep the Solve of another build from arriving.
pub const UNBOUND_CONNECTION_WINDOW: u32 = 1 << 20;

/// The receive window of a stream: what one sender may have in flight that nobody has read yet.
///
/// On loopback, a larger window does not make transfers faster. Between zones, 1 MiB is enough for 1 GB/s at 1 ms.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// The receive window of a connection: enough for sixteen streams that nobody reads, so that the stuck reader of
/// one stream does not stall the other streams of its build.
pub const CONNECTION_WINDOW: u32 = 16 << 20;

/// The receive window of a stream on a connection that calls of many clients share.
///
/// It is smaller than [`STREAM_WINDOW`], because each call that its client does not read takes this much of
/// [`SHARED_CONNECTION_WINDOW`]. History and blobs still get 256 MB/s at 1 ms.
pub const SHARED_STREAM_WINDOW: u32 = 256 << 10;

/// The receive window of a connection that calls of many clients share: enough for 256 calls whose clients have
/// stopped reading. No more calls than that share one connection, so no call waits behind them.
pub const SHARED_CONNECTION_WINDOW: u32 = 64 << 20;

/// How many bytes the library may queue for one stream before it stops pulling from the other side.
pub const SEND_BUFFER_LEN: usize = 256 << 10;

/// The size above which the proxy answers a client's metadata with its own error.
///
/// BuildKit's clients send 1 to 2 KiB. Hops in front add headers, such as tokens, and mostly limit them to 8 or 32
/// KiB.
pub const HEADER_LIST_LEN: usize = 64 << 10;

/// The size above which the HTTP/2 library itself refuses a client's header list. A gRPC client learns this limit,
/// and then does not send such a list.
pub const HARD_HEADER_LIST_LEN: u32 = 128 << 10;

/// The size above which the proxy answers with its own error instead of relaying the headers or trailers of a
/// daemon.
///
/// Error details carry the whole Dockerfile, in base64 of base64. With this limit, a Dockerfile of 2.3 MB passes.
pub const TRAILER_LIST_LEN: usize = 4 << 20;

/// The longest header list that the proxy announces to daemons, and to the HTTP/2 library.
///
/// This is far above [`TRAILER_LIST_LEN`]. The library allows a list as many frames as it would need in frames of
/// [`FRAME_LEN`], and a quarter more, but a daemon cuts the list into frames of 16 KiB: 1 280 of those are 20 MiB.
/// A longer list ends the daemon's connection. A client takes at most 16 MiB, so any error that a client could show
/// can be measured.
pub const DAEMON_HEADER_LIST_LEN: u32 = 64 << 20;

/// The concurrent streams of one connection. Each target of a bake takes four. Above the limit, grpc-go queues
/// calls silently, which would deadlock a large bake.
pub const MAX_STREAMS: u32 = 10_000;

/// The streams that a client may open and reset before they are accepted. grpc-go and HTTP/2 hops cancel calls in
/// bursts. Above the limit, the connection is closed (CVE-2023-44487).
pub const PENDING_RESETS: usize = 1_000;

/// The largest payload of a frame that is received, and of the frames that `io` makes of smaller ones. Each frame
/// costs the HTTP/2 library the same. A larger frame would have left the CPU's cache before it is sent on.
pub const FRAME_LEN: u32 = 64 << 10;

/// The size of a header list as HTTP/2 counts it (RFC 9113 section 6.5.2).
pub fn header_list_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}
