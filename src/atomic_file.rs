//! Files and directories that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use crate::failpoint::{self, Site};

/// Writes a file through `write`, under a temporary name beside it, and renames it when it is
/// complete and on disk. A symbolic link stays, and its target is replaced. What is no regular file
/// (a device, a FIFO, `/dev/stdout`) is written to as it is.
///
/// # Errors
/// If anything fails; then a regular file is as it was, and the temporary is gone.
pub fn write_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let result = match destination(path) {
        Ok(Destination::File(path)) => replace_file(&path, write),
        Ok(Destination::Stream) => write_stream(path, write),
        Err(error) => Err(error),
    };
    result.with_context(|| format!("{}: cannot write", path.display()))
}

/// Where the bytes for a path go.
pub(crate) enum Destination {
    /// A regular file of this name, all links followed, which may not exist yet.
    File(PathBuf),
    /// A device, a FIFO, or an open file of this process.
    Stream,
}

pub(crate) fn destination(path: &Path) -> Result<Destination> {
    /// Linux follows up to 40 links as well.
    const MOST_LINKS: usize = 40;
    let is_open_file = |path: &Path| path.starts_with("/proc") || path.starts_with("/dev/fd");
    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        if is_open_file(&target) {
            return Ok(Destination::Stream);
        }
        let Ok(link) = fs::read_link(&target) else {
            return match fs::metadata(&target) {
                Ok(data) if data.is_dir() => bail!("it is a directory"),
                Ok(data) if !data.is_file() => Ok(Destination::Stream),
                _ => Ok(Destination::File(target)),
            };
        };
        // A relative link starts from the directory that holds it.
        target = target.parent().unwrap_or(Path::new("")).join(link);
    }
    bail!("it leads through more than {MOST_LINKS} symbolic links")
}

/// Tells whether the path is a device, a FIFO or an open file of this process. Writing there replaces no file.
#[must_use]
pub fn is_stream(path: &Path) -> bool {
    matches!(destination(path), Ok(Destination::Stream))
}

fn replace_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    remove_stale(path);
    let temporary = Temporary::beside(path);
    let file = File::create(&temporary.path)?;
    // A file that only its owner may read stays so.
    if let Ok(replaced) = fs::metadata(path) {
        let _ = file.set_permissions(replaced.permissions());
    }
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    failpoint::reached(Site::Write).inspect_err(|_| {
        // What a disk that fills up leaves.
        let _ = file.set_len(file.metadata().map_or(0, |data| data.len() / 2));
    })?;
    file.sync_all()?;
    failpoint::reached(Site::Rename)?;
    fs::rename(&temporary.path, path)?;
    Ok(sync_directory(path.parent().unwrap_or(Path::new(".")))?)
}

/// Appends: `>> file` behind `/dev/stdout` keeps what the file has.
fn write_stream(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut writer = BufWriter::new(File::options().append(true).open(path)?);
    write(&mut writer)?;
    Ok(writer.flush()?)
}

/// Writes bytes as [`write_file`] does.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |writer| Ok(writer.write_all(bytes)?))
}

/// Fills a directory through `fill`, under a temporary name beside it, and renames it when every
/// file in it is on disk. An existing `path` is an error.
///
/// # Errors
/// If anything fails; then `path` is as it was, and the temporary is gone.
pub fn write_directory(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    remove_stale(path);
    let temporary = Temporary::beside(path);
    let result: Result<()> = (|| {
        fs::create_dir(&temporary.path)?;
        fill(&temporary.path).map_err(|error| temporary.name_target_in(error))?;
        for entry in fs::read_dir(&temporary.path)? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_directory(&temporary.path)?;
        failpoint::reached(Site::Rename)?;
        fs::rename(&temporary.path, path)?;
        Ok(sync_directory(path.parent().unwrap_or(Path::new(".")))?)
    })();
    result.with_context(|| format!("{}: cannot write", path.display()))
}

/// Refuses an output that is one of these inputs, whatever the names: the same device and inode, through
/// links too. `-` stands for standard input among the inputs, and for standard output as the output.
pub fn refuse_input_as_output<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let Some(written) = identity(output, true) else { return Ok(()) };
    for input in inputs {
        ensure!(
            identity(input, false).as_ref() != Some(&written),
            "{}: is the same file as the input {}, which would be lost; choose another output",
            shown(output, "standard output"),
            shown(input, "standard input")
        );
    }
    Ok(())
}

fn shown(path: &Path, standard: &str) -> String {
    if path.as_os_str() == "-" { standard.to_owned() } else { path.display().to_string() }
}

/// Device and inode of what holds data: none for a terminal, `/dev/null`, or a file that is not there.
#[cfg(unix)]
fn identity(path: &Path, is_output: bool) -> Option<(u64, u64)> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let data = match (path.as_os_str() == "-", is_output) {
        (false, _) => fs::metadata(path).ok()?,
        (true, true) => File::from(io::stdout().as_fd().try_clone_to_owned().ok()?).metadata().ok()?,
        (true, false) => File::from(io::stdin().as_fd().try_clone_to_owned().ok()?).metadata().ok()?,
    };
    let holds_data = data.is_file() || data.file_type().is_block_device() || data.file_type().is_fifo();
    holds_data.then(|| (data.dev(), data.ino()))
}

/// Elsewhere the full path stands for the file.
#[cfg(not(unix))]
fn identity(path: &Path, _: bool) -> Option<PathBuf> {
    fs::canonicalize(path).ok()
}

/// A name beside a path, in the same directory so that a rename stays on one filesystem. What has this
/// name is removed when this is dropped; after a rename there is nothing left.
pub struct Temporary {
    path: PathBuf,
    /// The file that it will replace.
    target: PathBuf,
}

/// Temporaries of this process, for [`remove_temporaries`].
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Temporary {
    /// `.name.tmp-<machine>-<process>-<start>`
    fn beside(path: &Path) -> Self {
        Self::new(path.with_file_name(format!("{}.tmp-{}", hidden_name(path), owner())), path)
    }

    /// A name in `directory` for a file that is made of `target`, and ends with `.ending`. What killed processes
    /// left there goes.
    #[must_use]
    pub fn made_of(target: &Path, directory: &Path, ending: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        sweep(directory, "");
        // A process may make several of one target.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}.tmp-{}.{ending}", hidden_name(target), owner());
        Self::new(directory.join(name), target)
    }

    fn new(path: PathBuf, target: &Path) -> Self {
        if let Ok(mut all) = TEMPORARIES.lock() {
            all.push(path.clone());
        }
        Self { path, target: target.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the temporary's hidden path in a message by the path of the file that it will replace.
    #[must_use]
    pub fn name_target(&self, message: &str) -> String {
        message.replace(&*self.path.to_string_lossy(), &self.target.to_string_lossy())
    }

    /// Does the same in an error; leaves an error without the hidden path as it is.
    #[must_use]
    pub fn name_target_in(&self, error: anyhow::Error) -> anyhow::Error {
        let message = format!("{error:#}");
        let named = self.name_target(&message);
        if named == message { error } else { anyhow!(named) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(&self.path);
        if let Ok(mut all) = TEMPORARIES.lock() {
            all.retain(|path| *path != self.path);
        }
    }
}

/// Removes what this process has half-written, before it ends in the middle of its work.
pub fn remove_temporaries() {
    if let Ok(all) = TEMPORARIES.try_lock() {
        all.iter().for_each(|path| remove(path));
    }
}

/// Leftovers do no harm, so errors are ignored.
fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// `.name`, cut so that the temporary's whole name fits into the 255 bytes of most filesystems.
fn hidden_name(path: &Path) -> String {
    const MOST_BYTES: usize = 180;
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    while name.len() > MOST_BYTES {
        name.pop();
    }
    format!(".{name}")
}

/// `<machine>-<process>-<start>`: who owns a temporary. Process numbers repeat in containers and on machines
/// that share a directory, so the machine's boot and its namespace of processes are part of it.
fn owner() -> &'static str {
    static OWNER: OnceLock<String> = OnceLock::new();
    OWNER.get_or_init(|| {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
        format!("{}-{}-{started:x}", machine(), std::process::id())
    })
}

fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let hash = Sha256::new_with_prefix(boot).chain_update(namespace.as_os_str().as_encoded_bytes()).finalize();
        hex(&hash[..4])
    })
}

/// Removes temporaries beside `path` whose process was killed, whatever they were for: nobody may write that very
/// file again.
fn remove_stale(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sweep(parent, "");
}

/// Removes what killed processes left half-written in a directory, of names that start with `prefix`: those
/// of this machine whose process has gone, and those of other machines that nobody has touched for a day.
pub fn sweep(directory: &Path, prefix: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_str().filter(|file| file.starts_with('.')).unwrap_or_default();
        let Some((name, temporary)) = file.rsplit_once(".tmp-") else { continue };
        if name.starts_with(prefix) && is_abandoned(temporary, &entry.path()) {
            remove(&entry.path());
        }
    }
}

fn is_abandoned(temporary: &str, path: &Path) -> bool {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let mut parts = temporary.split('-');
    let (Some(of), Some(process), Some(start), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    // Names of other programs may look nearly so.
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (start, _) = start.split_once('.').unwrap_or((start, ""));
    let Ok(process) = process.parse::<u32>() else { return false };
    if of.len() != 8 || !is_hex(of) || !is_hex(start) {
        return false;
    }
    if of == machine() {
        // Another process once had this one's number: it is gone.
        return !temporary.starts_with(owner()) && (process == std::process::id() || !is_running(process));
    }
    let changed = fs::symlink_metadata(path).and_then(|data| data.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > DAY))
}

/// Returns true if the process runs, or if the system does not tell.
fn is_running(process: u32) -> bool {
    !cfg!(target_os = "linux") || Path::new("/proc").join(process.to_string()).exists()
}

/// The SHA-256 of a file, as hexadecimal digits.
pub fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut hashed = || -> io::Result<u64> { io::copy(&mut File::open(path)?, &mut hash) };
    hashed().with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes renames in a directory last through a power cut.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_private_file_stays_private_when_it_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.csv");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        write_bytes(&path, b"new").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!((fs::read(&path).unwrap(), mode), (b"new".to_vec(), 0o600));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let failed = write_file(&path, |writer| {
            writer.write_all(b"new")?;
            anyhow::bail!("the disk is full")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("a.json: cannot write: the disk is full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("best");
        let failed = write_directory(&path, |inside| {
            fs::write(inside.join("a"), "1")?;
            anyhow::bail!("stopped")
        });
        assert!(failed.is_err() && !path.exists());
        write_directory(&path, |inside| Ok(fs::write(inside.join("a"), "1")?)).unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let create = |name: &str| fs::write(directory.path().join(name), "").unwrap();
        // No process has a number this high.
        let stale = format!(".checkpoint-3.tmp-{}-4294967295-1", machine());
        fs::create_dir(directory.path().join(&stale)).unwrap();
        let same_number = format!(".b.tmp-{}-{}-0", machine(), std::process::id());
        create(&same_number);
        let kept = [
            "checkpoint-4".to_owned(),
            ".lock".to_owned(),
            "a.tmp-7".to_owned(),
            // Of a process that runs, of this very one, of another machine.
            format!(".a.tmp-{}-1-1", machine()),
            format!(".c.tmp-{}", owner()),
            ".d.tmp-00000000-4294967295-1".to_owned(),
        ];
        kept.iter().for_each(|name| create(name));
        sweep(directory.path(), "");
        for name in &kept {
            assert!(directory.path().join(name).exists(), "{name}");
        }
        assert!(!directory.path().join(&same_number).exists());
        assert_eq!(directory.path().join(&stale).exists(), !cfg!(target_os = "linux"));
    }

    #[cfg(unix)]
    #[test]
    fn an_output_is_recognised_as_an_input_by_any_name() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["rows.csv", "other.csv"] {
            fs::write(path(name), "id,text\n").unwrap();
        }
        symlink("rows.csv", path("soft.csv")).unwrap();
        fs::hard_link(path("rows.csv"), path("hard.csv")).unwrap();
        symlink("new.csv", path("dangling.csv")).unwrap();
        let dotted = directory.path().join("..").join(directory.path().file_name().unwrap()).join("rows.csv");
        for output in [path("rows.csv"), path("soft.csv"), path("hard.csv"), dotted] {
            let refused = refuse_input_as_output(&output, [&*path("other.csv"), &*path("rows.csv")]);
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("same file as the input") && text.contains("rows.csv"), "{text}");
        }
        for output in [path("other.csv"), path("new.csv"), path("dangling.csv"), "/dev/null".into(), "-".into()] {
            refuse_input_as_output(&output, [&*path("rows.csv"), Path::new("/dev/null")]).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_its_target_gets_the_bytes() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("deep")).unwrap();
        fs::write(path("deep/target"), "old").unwrap();
        symlink("deep/target", path("first")).unwrap();
        symlink("first", path("second")).unwrap();
        symlink("deep/new", path("dangling")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for (link, target) in [("second", "deep/target"), ("dangling", "deep/new")] {
            write_bytes(&path(link), b"bytes").unwrap();
            assert!(path(link).is_symlink());
            assert_eq!(fs::read(path(target)).unwrap(), b"bytes");
        }
        assert!(write_bytes(&path("loop"), b"").is_err());
        let error = write_bytes(&path("deep"), b"").unwrap_err();
        assert!(format!("{error:#}").contains("it is a directory"), "{error:#}");
        write_bytes(Path::new("/dev/null"), b"gone").unwrap();
        assert!(is_stream(Path::new("/dev/null")) && !fs::metadata("/dev/null").unwrap().is_file());
    }
}
