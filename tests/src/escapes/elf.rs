//! A program of less than two hundred bytes, so that a guest need not load a large one for each attempt.

/// Where it is loaded.
const BASE: u64 = 0x40_0000;
/// What comes before the code: the header, and one segment.
const HEADERS: usize = 64 + 56;

/// Makes the file that the third argument names, and ends with status 0.
const INSTRUCTIONS: [u8; 33] = [
    0x48, 0x8b, 0x7c, 0x24, 0x20, // mov rdi, [rsp + 32]: argv[3]
    0xbe, 0x41, 0x00, 0x00, 0x00, // mov esi, O_WRONLY | O_CREAT
    0xba, 0xa4, 0x01, 0x00, 0x00, // mov edx, 0644
    0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, open
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, exit
    0x0f, 0x05, // syscall
    0x90, 0x90, // nop
];

/// An executable of x86-64 with that code.
pub(crate) const PROGRAM: &[u8] = &assemble();

const fn assemble() -> [u8; HEADERS + INSTRUCTIONS.len()] {
    let mut file = [0; HEADERS + INSTRUCTIONS.len()];
    // 64 bit, little endian, version 1
    put(&mut file, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    // an executable, for x86-64, version 1
    put(&mut file, 16, &[2, 0, 62, 0, 1]);
    put(&mut file, 24, &(BASE + HEADERS as u64).to_le_bytes());
    // segments from byte 64 on; sizes of the header and of a segment's, of which there is one
    put(&mut file, 32, &[64]);
    put(&mut file, 52, &[64, 0, 56, 0, 1]);
    // to be loaded, to be read and executed
    put(&mut file, 64, &[1, 0, 0, 0, 5]);
    put(&mut file, 64 + 16, &BASE.to_le_bytes());
    put(&mut file, 64 + 24, &BASE.to_le_bytes());
    let length = (file.len() as u64).to_le_bytes();
    put(&mut file, 64 + 32, &length);
    put(&mut file, 64 + 40, &length);
    put(&mut file, 64 + 48, &4096_u64.to_le_bytes());
    put(&mut file, HEADERS, &INSTRUCTIONS);
    file
}

const fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    let mut index = 0;
    while index < bytes.len() {
        file[at + index] = bytes[index];
        index += 1;
    }
}
