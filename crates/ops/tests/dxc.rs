//! Every permutation that Direct3D has, compiled by Microsoft's DXC as `cs_6_2`. `cargo xtask windows` runs this under Wine, with the
//! library that it fetches; on Windows: `cargo test -p pulid-ops --test dxc -- --ignored`, with the path of a `dxcompiler.dll` in the
//! environment variable `PULID_DXC`.
#![cfg(windows)]

mod translation;

use std::path::Path;
use translation::{Outcome, direct3d, id};
use windows::Win32::Graphics::Direct3D::Dxc::{
    CLSID_DxcCompiler, DXC_CP_UTF8, DXC_OUT_ERRORS, DxcBuffer, DxcCreateInstanceProc, IDxcBlobUtf8, IDxcCompiler3,
    IDxcResult,
};
use windows::Win32::System::LibraryLoader::{GetProcAddress, LoadLibraryW};
use windows::core::{HSTRING, Interface, PCWSTR, s};

/// DXC, from a library of its own.
struct Dxc(IDxcCompiler3);

impl Dxc {
    fn load(path: &Path) -> Outcome<Dxc> {
        let failed = |e: windows::core::Error| format!("{}: {e}", path.display());
        // SAFETY: the library is DXC, whose one function has this type; a COM pointer comes with the reference that is dropped.
        unsafe {
            let library = LoadLibraryW(&HSTRING::from(path)).map_err(failed)?;
            let create = GetProcAddress(library, s!("DxcCreateInstance"));
            let create: DxcCreateInstanceProc = std::mem::transmute(create);
            let create = create.ok_or_else(|| format!("{} has no DxcCreateInstance", path.display()))?;
            let mut compiler = std::ptr::null_mut();
            create(&CLSID_DxcCompiler, &IDxcCompiler3::IID, &mut compiler).ok().map_err(failed)?;
            Ok(Dxc(IDxcCompiler3::from_raw(compiler)))
        }
    }

    /// Compiles a text, or says what the compiler does.
    fn compile(&self, text: &str, entry: &str) -> Outcome {
        let source = DxcBuffer { Ptr: text.as_ptr().cast(), Size: text.len(), Encoding: DXC_CP_UTF8.0 };
        // The arguments of wgpu for shader model 6.2 and later.
        let arguments = ["-E", entry, "-T", "cs_6_2", "-HV", "2018", "-enable-16bit-types"].map(HSTRING::from);
        let arguments = arguments.each_ref().map(|argument| PCWSTR(argument.as_ptr()));
        // SAFETY: source and arguments live until the call returns; the blob is read while it is held.
        unsafe {
            let result: IDxcResult = self.0.Compile(&source, Some(&arguments), None).map_err(|e| e.to_string())?;
            if result.GetStatus().map_err(|e| e.to_string())?.is_ok() {
                return Ok(());
            }
            let mut errors: Option<IDxcBlobUtf8> = None;
            result.GetOutput(DXC_OUT_ERRORS, &mut None, &mut errors).map_err(|e| e.to_string())?;
            Err(errors.map_or("no reason given".into(), |e| e.GetStringPointer().to_string().unwrap_or_default()))
        }
    }
}

#[test]
#[ignore = "needs DXC, which `cargo xtask windows` fetches"]
fn every_shader_compiles_as_cs_6_2() {
    let path = std::env::var_os("PULID_DXC").expect("PULID_DXC names no dxcompiler.dll");
    let dxc = Dxc::load(Path::new(&path)).unwrap();
    dxc.compile("[numthreads(1, 1, 1)] void main() { nothing(); }", "main").unwrap_err();
    let mut failures = Vec::new();
    let mut compiled = 0;
    for shader in pulid_ops::shaders() {
        match direct3d(shader) {
            Ok(None) => {}
            // naga changes names that HLSL has taken; the entry point is what follows the size of a workgroup.
            Ok(Some(text)) => match entry(&text).and_then(|entry| dxc.compile(&text, entry)) {
                Ok(()) => compiled += 1,
                Err(said) => failures.push(format!("{}: {said}", id(shader))),
            },
            Err(e) => failures.push(format!("{}: {e}", id(shader))),
        }
    }
    assert!(failures.is_empty(), "{} do not compile:\n{}", failures.len(), failures.join("\n"));
    println!("{compiled} permutations compile");
    assert!(compiled > 100, "only {compiled} permutations were compiled");
}

/// The name of a text's one entry point.
fn entry(text: &str) -> Outcome<&str> {
    let [_, after] = text.split("[numthreads(").collect::<Vec<_>>()[..] else {
        return Err("has not one entry point".into());
    };
    let name = after.split_once("void ").and_then(|(_, rest)| rest.split_once('('));
    name.map(|(name, _)| name.trim()).ok_or_else(|| "its entry point has no name".into())
}
