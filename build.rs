//! Generates the Rust types of `proto/`: protox parses in process, so no protoc has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let messages = protox::compile(["control.proto", "content.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .bytes(".")
        .compile_fds(messages)?;
    let served = protox::compile(["externalscaler.proto"], ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(served)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
