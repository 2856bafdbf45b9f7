"""The units of measure that `units` knows, as plain data: SI, imperial and US, Chinese, money, information."""

PREFIXES = {
    "T": ("tera", 12),
    "G": ("giga", 9),
    "M": ("mega", 6),
    "k": ("kilo", 3),
    "h": ("hecto", 2),
    "d": ("deci", -1),
    "c": ("centi", -2),
    "m": ("milli", -3),
    "μ": ("micro", -6),
    "n": ("nano", -9),
    "p": ("pico", -12),
}
"""SI prefixes: symbol, long form, power of ten."""

# One line a unit: names, "=", factor and the unit it is a multiple of, or "base"; then, behind "|", the SI prefixes
# that it takes. The first name is the symbol that prefixes are glued to; a name of four or more Latin letters takes
# the prefixes' long forms.
DEFINITIONS = """
m meter metre 米 公尺 = base length | k h d c m μ n p
in inch 英寸 吋 = 0.0254 m
ft foot feet 英尺 呎 = 0.3048 m
yd yard 码 = 0.9144 m
mi mile 英里 = 1609.344 m
nmi 海里 = 1852 m
ly lightyear 光年 = 9460730472580800 m
AU 天文单位 = 149597870700 m
Å angstrom 埃 = 1e-10 m
毫米 = 1/1000 m
厘米 公分 = 1/100 m
分米 = 1/10 m
千米 公里 = 1000 m
微米 micron = 1e-6 m
纳米 = 1e-9 m
里 = 500 m
丈 = 10/3 m
尺 = 1/3 m
寸 = 1/30 m
kg 千克 公斤 = base mass
g gram gramme 克 = 1/1000 kg | M k d c m μ n p
t ton tonne 吨 公吨 = 1000 kg
毫克 = 1/1000000 kg
斤 = 1/2 kg
lb pound 磅 = 0.45359237 kg
oz ounce 盎司 = 0.028349523125 kg
stone = 6.35029318 kg
ct carat 克拉 = 0.0002 kg
amu Da dalton = base atomic_mass
s sec second 秒 秒钟 = base time | m μ n p
毫秒 = 1/1000 s
min minute 分钟 = 60 s
h hr hour 小时 钟头 时 = 3600 s
d day 天 日 = 86400 s
wk week 周 星期 = 604800 s
fortnight = 1209600 s
yr year 年 岁 周年 = base years
mo month 月 个月 = 1/12 yr
decade = 10 yr
century 世纪 = 100 yr
millennium = 1000 yr
° deg degree 度 = base angle
arcmin arcminute 角分 = 1/60 °
arcsec arcsecond 角秒 = 1/3600 °
gon grad gradian = 9/10 °
rad radian 弧度 = 57.295779513082320876798154814105 ° | m μ
rev revolution turn 圈 转 = base revolution
sr steradian = base solid_angle
K kelvin 开尔文 开 = base temperature | m μ
Pa pascal 帕 帕斯卡 = 1 kg/m s^2 | G M k h m
千帕 = 1000 Pa
百帕 = 100 Pa
兆帕 = 1000000 Pa
bar = 100000 Pa | k m
atm atmosphere 大气压 标准大气压 = 101325 Pa
torr = 101325/760 Pa
mmHg 毫米汞柱 = 133.322387415 Pa
psi = 6894.757293168 Pa
N newton 牛 牛顿 = 1 kg m/s^2 | G M k m μ n
千牛 = 1000 N
dyn dyne 达因 = 1/100000 N
lbf = 4.4482216152605 N
kgf = 9.80665 N
Nm = 1 N m
kNm = 1000 N m
Ns = 1 N s
J joule 焦 焦耳 = 1 N m | T G M k m μ
千焦 = 1000 J
erg = 1e-7 J
eV electronvolt 电子伏 电子伏特 = 1.602176634e-19 J | T G M k m
cal calorie 卡 卡路里 = 4.184 J | k
Cal 千卡 大卡 = 4184 J
BTU Btu = 1055.05585262 J
W watt 瓦 瓦特 = 1 J/s | T G M k m μ
千瓦 = 1000 W
兆瓦 = 1000000 W
hp horsepower 马力 = 745.69987158227022 W
Wh = 3600 J | T G M k m
千瓦时 度电 = 3600000 J
A amp ampere 安 安培 = base current | k m μ n
毫安 = 1/1000 A
C coulomb 库 库仑 = 1 A s | m μ n p
Ah = 3600 A s | m
V volt 伏 伏特 = 1 W/A | M k m μ
千伏 = 1000 V
毫伏 = 1/1000 V
Ω ohm 欧 欧姆 = 1 V/A | G M k m μ
千欧 kilohm kohm = 1000 Ω
megohm Mohm = 1000000 Ω
F farad 法 法拉 = 1 C/V | m μ n p
H henry 亨 亨利 = 1 V s/A | m μ n
Wb weber 韦伯 = 1 V s | m μ
T tesla 特斯拉 = 1 V s/m^2 | m μ n
S siemens 西门子 = 1 A/V | m μ
Hz hertz 赫 赫兹 = 1 s^-1 | T G M k m
千赫 = 1000 Hz
兆赫 = 1000000 Hz
Bq becquerel = base activity | G M k
Gy gray = base absorbed_dose | m
Sv sievert 希沃特 = base dose | m μ
cd candela 坎德拉 = base luminous_intensity
lm lumen 流明 = base luminous_flux | k
lx lux 勒克斯 = 1 lm/m^2 | k
mol mole 摩尔 摩 = base amount | k m μ n
dB decibel 分贝 = base level
ppm = base ppm
ppb = 1/1000 ppm
‰ permille = base permille
L l liter litre 升 公升 = 1/1000 m^3 | h d c m μ n
ML = 1/1000000 m^3
毫升 = 1/1000000 m^3
cc = 1/1000000 m^3
gal gallon 加仑 = 0.003785411784 m^3
qt quart 夸脱 = 0.000946352946 m^3
pt pint 品脱 = 0.000473176473 m^3
cup = 0.0002365882365 m^3
floz = 0.0000295735295625 m^3
tbsp tablespoon = 0.00001478676478125 m^3
tsp teaspoon = 0.00000492892159375 m^3
bbl barrel 桶 = 0.158987294928 m^3
M molar = 1000 mol/m^3 | m μ n
ha hectare 公顷 = 10000 m^2
are 公亩 = 100 m^2
ac acre 英亩 = 4046.8564224 m^2
亩 = 2000/3 m^2
sqft = 0.09290304 m^2
sqm = 1 m^2
mph = 0.44704 m/s
kph kmph kmh = 5/18 m/s
mps = 1 m/s
fps = base frames/s
kn knot 节 = 1852/3600 m/s
rpm = 1 rev/min
bpm = base beats/min
mpg = 1 mi/gal
bit 比特 = base information
B byte 字节 = 8 bit
bps = 1 bit/s
KiB kibibyte = 1024 B
MiB mebibyte = 1048576 B
GiB gibibyte = 1073741824 B
TiB tebibyte = 1099511627776 B
kbps Kbps = 1000 bps
Mbps = 1000000 bps
Gbps = 1000000000 bps
Kb kb kilobit = 1000 bit
Mb megabit = 1000000 bit
Gb gigabit = 1000000000 bit
px pixel 像素 = base pixels
$ dollar USD US$ buck 美元 美金 = base dollars
¢ cent 美分 = 1/100 $
€ euro EUR 欧元 = base euros
£ GBP sterling 英镑 = base sterling
pence penny = 1/100 £
yuan CNY RMB renminbi 元 块 块钱 人民币 = base yuan
jiao 角 毛 = 1/10 yuan
yen JPY 日元 = base yen
₹ rupee INR Rs 卢比 = base rupees
₩ won KRW 韩元 = base won
₽ ruble rouble RUB 卢布 = base rubles
₿ bitcoin BTC 比特币 = base bitcoins
฿ baht THB 泰铢 = base baht
franc CHF 瑞士法郎 = base francs
HK$ HKD 港元 港币 = base hong_kong_dollars
NT$ TWD 新台币 = base taiwan_dollars
A$ AUD 澳元 = base australian_dollars
C$ CAD 加元 = base canadian_dollars
S$ SGD 新加坡元 = base singapore_dollars
peso MXN 比索 = base pesos
"""
