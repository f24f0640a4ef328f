//! The context that is built: one file of any size.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::SystemTime,
};

use anyhow::Result;

const CONTEXT_FILE: &str = "big";

/// Writes a Dockerfile and a file of `len` bytes into `context`, for an image that consists of that file.
pub(crate) fn create(context: &Path, len: u64) -> Result<()> {
    fs::create_dir_all(context)?;
    fs::write(context.join("Dockerfile"), format!("FROM scratch\nCOPY {CONTEXT_FILE} /\n"))?;
    let mut file = File::create(context.join(CONTEXT_FILE))?;
    // Zeros could be sent or stored as a hole.
    let mut block = vec![0; 1 << 20];
    let mut written = 0;
    while written < len {
        for (index, byte) in block.iter_mut().enumerate() {
            *byte = (index as u64 * 31 + written) as u8;
        }
        let part = block.len().min(usize::try_from(len - written)?);
        file.write_all(&block[..part])?;
        written += part as u64;
    }
    Ok(())
}

/// Makes the file of the context look changed, so that it is sent again.
pub(crate) fn touch(context: &Path) -> Result<()> {
    let file = File::options().append(true).open(context.join(CONTEXT_FILE))?;
    Ok(file.set_modified(SystemTime::now())?)
}
