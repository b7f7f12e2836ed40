"""Small HEIC files, which pillow-heif has made; tlray's dependencies can only decode them."""

import base64
import zlib


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b85decode("".join(text.split())))


# Each shows `photo(size=(48, 32))` of bad_files.py, encoded with quality 95 and without subsampling.
PLAIN = _unpacked(
    r"""
    c-muNV30{GsVvAy&8%Pmg51nBLl8SRGck>Ufw3+(wIq=N0u(b+a*CjAhJwuG5(YG&l$n#C3}U!AFfalk5HK!+&<qSrJU~J@Gczv@
    %ms;x0y(KnP+mq^vLT4cSCCnf3s>?lv!JK|NZ-pWNX`e+<v?Z5j4T{L<~$3KBDoI?fBygY!N9=JoB-4z?!d^y`2Rmh0W(+yGf>Gc
    CWl0zoR$+KBdWv%76FA#cVnhpH)rH!V*!b!fCv_aB%pE*7si9d5(XR-fVK!H=jRmVCFfKC#d#Un8h}C~nZ*UEP>(x6u|{%EBFMD{
    P}eJf=>Px!e*pO(NIwA4KrB#@S&<3S$jre3@`^-eK`tzmfdR+b$i&Rr0#quJo013&WhM>{#`SDFHaXr@5<GCGX|eU%uybD~u3UAS
    @%tOC8h*t&sS<HJd>1A6vee(Y@}==b>!fbB`){P&)K)QP+P&WrxVFa9m^DCRzue!nc&GQ@F66$D=J>1q|EZ_NPBp_a>1SWXcHWB(
    e2~3&XXC|rA9j5Bub=-brH`XCjMeQ<Nx+>=xe2*TpMJ7RI=Deo!*<F~o)_unj?8UNOI#MrH<;uV-dA(~ql~TkU;e|hZWX?Mrs4AM
    sgC@k|A+3@zAK5|{a^abRcrfyv;QwqiEmuw@*#}r;~hKhd(C@=6mHJ6dv0XxqQW_oYnRQf=kp%d&()1?Q&HwPsP=dM|Nk@Wl{0)^
    xz{WxGuySYWdHvs<wEIR^W*r<tG?`NEWEjAzR?8Pn%tJdlh(IwG`yA{w!leiS&hgkRq3^xkMFUWG&8UBSYUl`>&*8ud&5d)g&v*#
    e6@1c*-Nue#>TYd@+eMjFUj8LyuoPi<e*!M>saIbQ-duQPuo@ZkIlGx?PHOmJI>K^#b;hiOZHB)Q%f~J;P!#ZqT*0b_4WJ>^QL88
    XZ4<NajU#(TG^zPOFmnrvoFwKJC^)kH}4+XoofE47kD2(<7M$)?^g7^<%H|%#~Q)8ul1aszP}pPy7HoMuhB|VOLxzNl55tQcE`FS
    `j#!>SK6dleKW7??%gEEppqxX>B60d)|y`KZ?Dz$(BC4j`%0_m@Be=Q1b9v`
    """
)
TURNED = _unpacked(
    r"""
    c-muNV30{GsVvAy&8%Pmg51nBLl8SRGck>Uf$?N+YDppk1Sn>t<P<^K3<a6VB@Af5Br_*J8N_gLU|?ck1hE+3LTCmCCLW*|5HSCQ
    i7==Du|;NPUK&IJ5Q_pisbFP5H5p~eh73r8j36bh6`5e=d<B^$xeQR1j2xK-MFl|i^UQ+ed>~y8)a%U1!U1H?vj8cQ`@rz$|BoLG
    4E)RqKpo-^j6970|AQ1TgH<pCmF!}2NCe7hIWaP#N=#r8P}p=gX3BMQMqV}+kXQ<cU{Oc{D(7%vJXkDYz%c=6i*Ry&PElTRP6be$
    mw~MTC?t|uT#yR&uLBfoB<Cc8Tx$SvJ%a*>{{R2~2T&*g=?Boz5Gcs3$OMNO2M5S2oS8-WB|rx;NM;t~!eWJyfsw6|iJ7&f4akwo
    EJ{s-O7JD86eok@0cZ!4MQ%zWFv6HPG#J;j?bzgaQ%Uf^nWn|oYs1ccnYeP*ZN~3!v}*Vj=cG!+?eJZc+{;pb>&lnL7p;@J+3vrQ
    a#LHyoN4!dOW@iXOJmjmiT!ea)8d`pf4h+TLYm{R_W!4z7CY4p%cP%u72A0)Ht<3A-kpsX=Y81m;lF<VuarKH&M;QDJ0$^kHsvPd
    E`9pRD(T<`O%2;AKY3oHn>#YMIW2KnFyCO3S9o8|{f{!X>VNqU&$?Ck`k98yzo$C#kNzLJTl=mgdiQ_nGgqzc|IPltL?ym)k;{iL
    rjK{*xbHRZ6;il4)9$&Ev5N}lOs-uvx1P^?Tt8Pgx=lry<DlB#`TzgVuvgCTdF5WSpv-L7%98#6pOg!wd(DsIH?R7#tFiFrp7}--
    WNUI;4o_O&w$bofe%Jyhtz|VLr&OiaZa%)pX41^O&SQb~y{$9f%j^v+l@)q)_Vd-sS!XZJJ{cR+lFOqwxxFNNpYsNzy_17(DXwFU
    ^G^-7SUhc4-9I+t>a~wWitac^%N3t_EiKtQ%}y=V{D9jBCX0$gJ=NFqH_V%sb)D6F!o{ufrfFr9RxbH$mCn9EgY8)If8D%$Y<H^p
    pI+d7{EU~yd%auH_m&f`s~>9w=f2i+diwrqRO`x%!o5Z-O)cF$6H2aGYuX*_j_6yqgkNcsV)f0uuDf@W9D_=p7^e$&9$IU9xxc+u
    *F%4cyzVQlqQC$D0aFMYBs2N?GH3yL91M(%LZI{xOfPJZBm@9PJzCE
    """
)
"""Its orientation is 6: the container turns it, and its EXIF data say so too."""
ALPHA = _unpacked(
    r"""
    c-muNV30{GsVvAy&8%Pmg51nBLl8SRGck>Ufhi|9wIq=N0u(b+a*CjAhJwuG5(YG2l9`jA3}U!AFfcJNf>=xwAT*H00~7-SmN_sH
    20kFR$jr=3gD3!EQ6MK3tPH3oqb%8w0Y#7rA;?#dS(3{DRmr$Iv!JK|NH=E|B<BOg%7Mz98Cf`h%y||dMRFe){`~*(gMopcIRU6c
    +<}pY@&A920%ouZW}uQ?Ob&@aIV~qfMpTIjECLFf?#4{HZqCTd#sU&c0TC<;NkHWsE{q3@B@8$w0BsRY&d({zOU|hPit{qCH2{S~
    GK&jRq5gG%VvXdSM4)RK3?Qy&Pyo^Y|Ns90@*<Fa01XX+g3O9ckVa+>4v<$05WbrK1LmtgID7?Cf#fSyxUXOm2bx&KqE}Cv_3Qx9
    ojeU7!4{B**gzgS&<P1+i2aNpE7cQAE1W^R(xN=8+=A3}tBlmLWGf>BLsKiDRA!15IARns3vyv82ABv~8=06{TNs#F+nCuqT7Y6w
    nMJ8-umk|qmjg~Jz+hlf%1ucGrYR;44aW6sJ2pAqR1!RJrfISD+OTt9Cazp{oALV_tr~vCIjItHJA4-<_p;RAy7Hy*MeC$)w)=0S
    +|*VvXWG5r61cX;(wH?sV!zzqw0NiY-!A07kmmTS{r{<_#ZEQDGU;bu#dh9{4SbNjcW2|pc^`Is_^+S;E2WR4GmO>kPD#L>O}PoV
    OP_wSN;<efQ^R)3Po5X)=8nv5PD@-C%r}_i72a2K|D%kp`d|LTvu+i>ex~8_@2QUbqyLBQ*1ju=-u++t%vEdqf3yEDQHgI{<nkem
    >Ej(c?t9I9g%obiw0mx3?4rUslWUjFt>^O|*U#0BZc|a_IH>k_{{R0o?3FWoUb)vSC^Or&vSk1NC*?xvUi0Jl&8xobYAn3DXTH${
    *_zyz!;{vxZ8W@=AGW|rYgvuRDOKsUn~(3YnKU!6^H^YgZ|ltWGJC^HWrZG{{d~1@*4az5PsYZy<nky^ZZFB+=e)sa@8qCcitAY8
    {8NK17Ejw%_m9oEdhKJ8qC3vfa>Zv}OH1}nvr|hoKj8L($)e&=PxbZu4fCdDU1#;4aB-`=X<FH&l}kQbrL!;4U^|xlUpMa_+ns9u
    rx$o1KjUTbUhh`)z2$`K>c<+vxv%w{p1!{t)w=ScaIeuyQ%iTxgpzC4ns&#!Bl?yt;aA$ESba0E>+ano$DooY#_7VHht`^2?r*Qv
    _0ZoUulq`?=<ol3z!buz!MKjMV2@dvyf6UMjew;
    """
)
"""Its alpha is 128 everywhere."""
SECOND_IS_PRIMARY = _unpacked(
    r"""
    c-muNV30{GsVvAy&8%Pmg51nBLl8SRGck>UfypN~wIq=N0u(b+a*CjAhJwuG5(YG2l9`jA3}U!AFfcJNf>=xi5E=;dfMOt#c`y+s
    9w1?nnVFXc;R3NJkdq2l22_(#mTbs?BFKag<SWQ5$%W}-T$))>Q~;!FGYgXQfnw!AWzLK&96;tg3y>nY4-9|)|M<bcz|WijG+W$(
    k%#gBe~<!ZunK0Nl3h#=i9k6mCq_n8i3uzM3Y+eRUXHoLVj>{`6l0tKk`QP}0xIWlVLVtYVITn%Vh~Qw&ne1F&Zz*3^D?kC0EI*{
    iwjbrA>aVT8p%0{K-V$|K>P`z|NsAg0puGP4H7TNtjGjuWai-Dppma)rd&5?<Yi+4iKT!D76l|<aZEsRt^w4!3Q*^MfI9a9)VT_o
    1-Y=a0*rpvMkZ#~76vBPHXz*&6mrT<Nd%=CEe*!?Y@38-7fjOJk^Xl&ufxQ@aSLCh9XT0$xApmg#7|eh&e6_L{4@9azxP0093a&@
    HaXr@5<GCGX|eU%uybD~u3UAS@%tOC8h*t&sS<HJd>1A6vee(Y@}==b>!fbB`){P&)K)QP+P&WrxVFa9m^DCRzue!nc&GQ@F66$D
    =J>1q|EZ_NPBp_a>1SWXcHWB(e2~3&XXC|rA9j5Bub=-brH`XCjMeQ<Nx+>=xe2*TpMJ7RI=Deo!*<F~o)_unj?8UNOI#MrH<;uV
    -dA(~ql~TkU;e|hZWX?Mrs4AMsgC@k|A+3@zAK5|{a^abRcrfyv;QwqiEmuw@*#}r;~hKhd(C@=6mHJ6dv0XxqQW_oYnRQf=kp%d
    &()1?Q&HwPsP=dM|Nk@Wl{0)^xz{WxGuySYWdHvs<wEIR^W*r<tG?`NEWEjAzR?8Pn%tJdlh(IwG`yA{w!leiS&hgkRq3^xkMFUW
    G&8UBSYUl`>&*8ud&5d)g&v*#e6@1c*-Nue#>TYd@+eMjFUj8LyuoPi<e*!M>saIbQ-duQPuo@ZkIlGx?PHOmJI>K^#b;hiOZHB)
    Q%f~J;P!#ZqT*0b_4WJ>^QL88XZ4<NajU#(TG^zPOFmnrvoFwKJC^)kH}4+XoofE47kD2(<7M$)?^g7^<%H|%#~Q)8ul1aszP}pP
    y7HoMuhB|VOLxzNl55tQcE`FS`j#!>SK6dleKW7??%gEEppqxX>B60d)|y`KZ?Dz$(BC4j`%0_m@Be=QGV+Uy
    """
)
"""Its first image is black, 16 x 16 pixels."""
