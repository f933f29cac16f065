//! Some images of kernel/examples, and the kernel without Xen.

use crate::fixture::{Fixture, build, cases, example};
use crate::service::PATIENCE;
use anyhow::{Result, ensure};
use lab::{Domain, Tree, dom0_port};
use std::io::Read;
use std::net::TcpStream;

cases![
    the_example_of_the_readme_sends_its_greeting,
    images_contain_no_floating_point_instructions,
    images_are_small,
    floats_are_exact_across_hundreds_of_sleeps,
    without_xen_the_kernel_prints_its_requirements,
];

/// Copies an example's image into dom0, unless it is there already, and returns a configuration
/// that runs it.
pub fn image(fixture: &Fixture, name: &str, cmdline: &str) -> Result<String> {
    fixture.copy(&example(name)?, &format!("/root/{name}"))?;
    Ok(format!(
        "type = \"pvh\"\nkernel = \"/root/{name}\"\ncmdline = \"{cmdline}\"\nmemory = 32\n\
         pvcalls = [\"backend=0\"]\ntsc_mode = \"native\"\n"
    ))
}

fn the_example_of_the_readme_sends_its_greeting(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    let _guest = Domain::create(lab, "hello", &image(fixture, "hello", "")?)?;
    let port = crate::fixture::free_port()?;
    lab.forward(port, dom0_port(7000))?;
    crate::fixture::wait_until("the guest greets", PATIENCE, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut said = String::new();
        // Until the guest listens, the connection is reset.
        let _ = stream.read_to_string(&mut said);
        Ok(said.starts_with("Hello from a guest"))
    })
}

fn images_contain_no_floating_point_instructions(_: &Fixture) -> Result<()> {
    for name in ["floats", "faults"] {
        example(name)?;
    }
    build("tls")?;
    let release = Tree::here().target().join("x86_64-xen-pvh/release");
    // The last image contains such instructions on purpose.
    for (image, has_some) in [
        ("xensock-kernel", false),
        ("xensock-kernel-tls", false),
        ("examples/floats", false),
        ("examples/faults", true),
    ] {
        let mut objdump = std::process::Command::new("objdump");
        let code = objdump.args(["-d", "--no-show-raw-insn"]).arg(release.join(image)).output()?;
        ensure!(code.status.success(), "{image}: {}", String::from_utf8_lossy(&code.stderr));
        let code = String::from_utf8(code.stdout)?;
        let instructions = code.lines().filter_map(|line| line.split('\t').nth(1));
        let is_one = |text: &&str| {
            // No integer instruction begins with this letter.
            text.starts_with('f') || ["%mm", "%xmm", "%ymm"].iter().any(|name| text.contains(name))
        };
        let found: Vec<_> = instructions.filter(is_one).collect();
        ensure!(found.is_empty() != has_some, "{image}: {found:?}");
        ensure!(code.contains("hlt"), "{image}: no code was disassembled");
    }
    Ok(())
}

/// The most bytes of a stripped image. If one grows beyond, `nm -CS --size-sort` of the file with
/// symbols shows what is large. A limit is raised only for a feature that is worth it.
const LIMITS: [(&str, u64); 3] = [
    ("xensock-kernel", 704 << 10),
    ("xensock-kernel-tls", 1408 << 10),
    ("examples/hello", 320 << 10),
];

fn images_are_small(_: &Fixture) -> Result<()> {
    example("hello")?;
    build("tls")?;
    let release = Tree::here().target().join("x86_64-xen-pvh/release");
    let folder = tempfile::tempdir()?;
    let stripped = folder.path().join("stripped");
    for (image, limit) in LIMITS {
        let mut strip = std::process::Command::new("strip");
        let status = strip.arg("-o").arg(&stripped).arg(release.join(image)).status()?;
        ensure!(status.success(), "cannot strip {image}");
        let size = std::fs::metadata(&stripped)?.len();
        println!("{image}: {} KiB of {}", size.div_ceil(1024), limit / 1024);
        ensure!(size <= limit, "{image} has {size} bytes, which is more than {limit}");
    }
    Ok(())
}

/// The computation of `kernel/examples/floats.rs`, in floating point registers.
fn floats() -> [String; 3] {
    let (mut double, mut single, mut events) = (0.3_f64, 0.3_f32, 1.0_f64);
    for step in 0..400_u32 {
        double = 3.9 * double * (1.0 - double);
        single = 3.9 * single * (1.0 - single);
        let whole = (events * 1e9) as i64 % 1000;
        events = (whole as f64 + f64::from(step)) / (events + 0.1) / 700.0
            + f64::from(events as f32) / 3.0;
    }
    [
        format!("double {:016x}", double.to_bits()),
        format!("single {:08x}", single.to_bits()),
        format!("events {:016x}", events.to_bits()),
    ]
}

fn floats_are_exact_across_hundreds_of_sleeps(fixture: &Fixture) -> Result<()> {
    let guest = Domain::create(fixture.lab()?, "floats", &image(fixture, "floats", "")?)?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    for bits in floats() {
        ensure!(console.contains(&bits), "no {bits:?} in {console}");
    }
    Ok(())
}

fn without_xen_the_kernel_prints_its_requirements(_: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("serial.log");
    let mut qemu = std::process::Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(Tree::here().kernel())
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .spawn()?;
    let said = crate::fixture::wait_until("the kernel prints its requirements", PATIENCE, || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(said.contains("there is no Xen here") && said.contains("type=\"pvh\""))
    });
    qemu.kill()?;
    qemu.wait()?;
    said
}
