# Boot ROM of the rig for Bochs: 64 KiB at 0xF0000 (and 0xFFFF0000). GNU as, Intel syntax.
#
# It enters long mode at once, reads an image from disk, runs every job of it in ring 3, writes the
# outputs back to the disk and ends the emulator. No BIOS, no operating system, no interrupts.
# bochs_image.py writes the image; bochs_rom.py holds the assembled bytes and rebuilds them.
#
# Header, first sector of the image, 8-byte words at:
#   0 magic  8 sectors  16 CR3  24 jobs  32 number of jobs  40 out: XCR0  48 out: jobs done
#   56 first sector to write back  64 sectors to write back  72 return address of jobs (int 31)
#   80 XSAVE image  88 rbx  96 rbp  104 r12  112 r13  120 r14  128 r15  136 all other registers
# Job, 256 bytes:
#   in: 0 entry  8 rdi  16 rsp (the return address is put at rsp-8)
#   out: 64 status (1 returned, 2 fault)  72 vector  80 error code  88 rip  96 cr2  104 rsp
#   112 mxcsr  120 rflags  128 rax  136 rbx  144 rbp  152 r12  160 r13  168 r14  176 r15
# Port 0xE9 (to the host's stdout): byte 1 when the jobs start, '.' after each of them.
.intel_syntax noprefix
.equ ROM,     0xF0000
.equ IMAGE,   0x100000
.equ JOB,     0x7000            # low RAM: address of the job in work
.equ LEFT,    0x7008            # jobs left
.equ SCRATCH, 0x7010
.equ STACK,   0x80000
.equ FAULTS,  0x90000           # stack of the exception handlers (IST1)

.text
.code16
start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    data32 lgdt [gdtr - start]
    mov eax, ROM + (pml4 - start)
    mov cr3, eax
    mov eax, 0x40620            # PAE OSFXSR OSXMMEXCPT OSXSAVE
    mov cr4, eax
    mov ecx, 0xC0000080         # EFER
    xor edx, edx
    mov eax, 0x900              # LME NXE
    wrmsr
    mov eax, 0x80010033         # PG WP NE ET MP PE: real mode to long mode in one step
    mov cr0, eax
    .byte 0x66, 0xEA            # jmp 0x08:long
    .long ROM + (long - start)
    .word 0x08

.code64
long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, STACK
    lidt [rip + idtr]
    mov eax, 0x18
    ltr ax
    mov eax, 0xD                # enable what the processor has of
    xor ecx, ecx                # x87 SSE AVX opmask ZMM_Hi256 Hi16_ZMM XTILECFG XTILEDATA
    cpuid
    and eax, 0x600E7
    xor edx, edx
    xor ecx, ecx
    xsetbv
    mov r15d, eax

    mov edi, IMAGE              # the header, then the rest
    xor esi, esi
    mov ebp, 1
    mov bl, 0x20
    call disk
    mov ebp, [IMAGE + 8]
    dec ebp
    mov esi, 1
    mov edi, IMAGE + 512
    mov bl, 0x20
    call disk

    mov [IMAGE + 40], r15
    mov rax, [IMAGE + 16]
    mov cr3, rax
    mov rax, [IMAGE + 24]
    mov [JOB], rax
    mov rax, [IMAGE + 32]
    mov [LEFT], rax
    mov r11, [IMAGE + 80]
    and [r11 + 512], r15        # XSTATE_BV: only what is enabled
    mov al, 1
    out 0xE9, al

next:
    cmp qword ptr [LEFT], 0
    je finish
    dec qword ptr [LEFT]
    mov eax, [IMAGE + 40]       # poison x87, vector and mask registers; AMX tiles to nothing
    xor edx, edx
    mov r11, [IMAGE + 80]
    xrstor [r11]
    mov r11, [JOB]
    mov rcx, [r11 + 16]
    sub rcx, 8
    mov rax, [IMAGE + 72]
    mov [rcx], rax
    push 0x2B                   # ss, rsp, rflags, cs, rip of ring 3
    push rcx
    push 2
    push 0x33
    push [r11]
    mov rdi, [r11 + 8]
    mov rbx, [IMAGE + 88]
    mov rbp, [IMAGE + 96]
    mov r12, [IMAGE + 104]
    mov r13, [IMAGE + 112]
    mov r14, [IMAGE + 120]
    mov r15, [IMAGE + 128]
    mov rax, [IMAGE + 136]
    mov rcx, rax
    mov rdx, rax
    mov rsi, rax
    mov r8, rax
    mov r9, rax
    mov r10, rax
    mov r11, rax
    iretq

fault:                          # stack: vector, error code, rip, cs, rflags, rsp, ss
    cld
    push rcx
    mov rcx, [JOB]
    mov [rcx + 128], rax
    mov [rcx + 136], rbx
    mov [rcx + 144], rbp
    mov [rcx + 152], r12
    mov [rcx + 160], r13
    mov [rcx + 168], r14
    mov [rcx + 176], r15
    pop rax                     # the job's rcx
    pop rax
    mov [rcx + 72], rax
    pop qword ptr [rcx + 80]
    pop rdx
    mov [rcx + 88], rdx
    mov rbx, cr2
    mov [rcx + 96], rbx
    pop rbx
    pop qword ptr [rcx + 120]
    pop qword ptr [rcx + 104]
    stmxcsr [SCRATCH]
    mov ebx, [SCRATCH]
    mov [rcx + 112], rbx
    mov ebx, 2
    cmp eax, 31                 # returned: int 31, and from the return address, nowhere else
    jne 1f
    sub rdx, 2
    cmp rdx, [IMAGE + 72]
    jne 1f
    mov ebx, 1
1:  mov [rcx + 64], rbx
    mov esp, STACK
    mov al, '.'
    out 0xE9, al
    inc qword ptr [IMAGE + 48]
    add qword ptr [JOB], 256
    jmp next

finish:
    mov rsi, [IMAGE + 56]
    mov rbp, [IMAGE + 64]
    lea rax, [rip + pml4]       # identity map again
    mov cr3, rax
    mov edi, esi
    shl edi, 9
    add edi, IMAGE
    mov bl, 0x30
    call disk
    xor esi, esi                # the header last: it says that all is done
    mov edi, IMAGE
    mov ebp, 1
    mov bl, 0x30
    call disk
stop:
    lea rsi, [rip + shutdown]
    mov ecx, 8
    mov edx, 0x8900             # Bochs ends when it has read the word "Shutdown" here
    rep outsb
2:  hlt
    jmp 2b
shutdown: .ascii "Shutdown"

# Disk, by PIO. edi: memory, esi: first sector, ebp: sectors (0: nothing), bl: 0x20 read, 0x30 write
disk:
    test ebp, ebp
    jz 9f
    mov edx, 0x1F7
3:  in al, dx
    test al, 0x80               # busy
    jnz 3b
    mov r8d, 256
    cmp ebp, r8d
    cmovb r8d, ebp
    mov eax, esi
    shr eax, 24
    or al, 0xE0
    mov edx, 0x1F6
    out dx, al
    mov eax, r8d
    mov edx, 0x1F2
    out dx, al                  # 0 is 256 sectors
    inc edx
    mov eax, esi
    out dx, al
    inc edx
    shr eax, 8
    out dx, al
    inc edx
    shr eax, 8
    out dx, al
    mov edx, 0x1F7
    mov al, bl
    out dx, al
    add esi, r8d
    sub ebp, r8d
4:  mov edx, 0x1F7
5:  in al, dx
    test al, 0x80
    jnz 5b
    test al, 0x21               # error, device fault: end, with too few jobs done
    jnz stop
    test al, 8                  # data request
    jz 5b
    mov edx, 0x1F0
    mov ecx, 128
    cmp bl, 0x30
    je 6f
    rep insd
    jmp 7f
6:  xchg rsi, rdi
    rep outsd
    xchg rsi, rdi
7:  dec r8d
    jnz 4b
    jmp disk
9:  ret

.balign 16
vectors:                        # 16 bytes each; those without an error code push 0
.set v, 0
.rept 32
    .balign 16
    .if (v == 8) || (v >= 10) && (v <= 14) || (v == 17) || (v == 21)
    .else
    push 0
    .endif
    push v
    jmp fault
    .set v, v + 1
.endr

.balign 16
gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF    # 08 code, ring 0
    .quad 0x00CF93000000FFFF    # 10 data, ring 0
    .word 0x67, tss - start     # 18 task state, at ROM + tss
    .byte 0x0F, 0x89, 0, 0
    .quad 0
    .quad 0x00CFF3000000FFFF    # 28 data, ring 3
    .quad 0x00AFFB000000FFFF    # 30 code, ring 3
gdtr:
    .word gdtr - gdt - 1
    .long ROM + (gdt - start)
.balign 16
tss:
    .fill 36, 1, 0
    .quad FAULTS                # IST1
    .fill 102 - 44, 1, 0
    .word 104                   # I/O map beyond the limit: ring 3 has no ports
idtr:
    .word 32*16 - 1
    .quad ROM + (idt - start)
.balign 16
idt:
.set v, 0
.rept 32
    .word (vectors - start) + v*16
    .word 0x08
    .if v == 31
    .byte 1, 0xEE               # IST1, interrupt gate, ring 3 may use it: the way back of a job
    .else
    .byte 1, 0x8E               # IST1, interrupt gate
    .endif
    .word ROM >> 16
    .long 0, 0
    .set v, v + 1
.endr

# Identity map of the first GiB in one page (models before Haswell lack those, and triple-fault),
# accessed and dirty preset as ROM cannot be written.
.org 0x1000
pml4:
    .quad ROM + 0x2000 + 0x23
.org 0x2000
    .quad 0xE3
.org 0xFFF0                     # reset
    .byte 0xEA                  # jmp 0xF000:0
    .word 0, 0xF000
.org 0x10000
