/* Pictures in and out: JPEG, PNG, EXIF, resize; and what happens to damaged files. The golden
 * numbers and the little files were made with PIL 9.4: colour ramps (12x+10, 20y+10, 255-6x-10y), 20×12. */
#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/core.h"
#include "data/parts.h"
#include "tests/test.h"

/* What the little JPEGs begin with: the JFIF header and the quantisation tables. */
#define JFIF_LUMA \
    255, 216, 255, 224, 0, 16, 74, 70, 73, 70, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 255, 219, 0, 67, 0, \
    3, 2, 2, 3, 2, 2, 3, 3, 3, 3, 4, 3, 3, 4, 5, 8, 5, 5, 4, 4, 5, 10, 7, 7, 6, 8, 12, 10, 12, \
    12, 11, 10, 11, 11, 13, 14, 18, 16, 13, 14, 17, 14, 11, 11, 16, 22, 16, 17, 19, 20, 21, 21, \
    21, 12, 15, 23, 24, 22, 20, 24, 18, 20, 21, 20
#define CHROMA \
    255, 219, 0, 67, 1, 3, 4, 4, 5, 4, 5, 9, 5, 5, 9, 20, 13, 11, 13, 20, 20, 20, 20, 20, 20, \
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, \
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20

static const uint8_t jpeg_colour[] = {
    JFIF_LUMA, CHROMA,
    255, 192, 0, 17, 8, 0, 12, 0, 20, 3, 1, 17, 0, 2, 17, 1, 3, 17, 1, 255, 196, 0, 21, 0, 1, 1,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 255, 196, 0, 31, 16, 0, 1, 2, 6, 3, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 35, 4, 6, 7, 34, 50, 161, 1, 2, 19, 255, 196, 0, 24, 1, 1, 1,
    0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 8, 4, 6, 9, 255, 196, 0, 30, 17, 0, 0, 6, 3, 1,
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6, 33, 34, 1, 3, 49, 19, 35, 255, 218, 0, 12, 3,
    1, 0, 2, 17, 3, 17, 0, 63, 0, 134, 133, 163, 216, 177, 165, 85, 171, 189, 123, 97, 160, 32,
    184, 185, 96, 248, 45, 30, 197, 141, 33, 69, 119, 175, 108, 40, 164, 23, 23, 44, 26, 66, 81,
    230, 56, 99, 72, 148, 203, 215, 233, 155, 7, 82, 110, 47, 142, 44, 41, 161, 101, 129, 246,
    178, 176, 213, 213, 77, 77, 135, 30, 16, 79, 111, 137, 15, 130, 203, 3, 237, 101, 9, 171,
    171, 26, 155, 10, 41, 4, 246, 248, 144, 210, 18, 88, 31, 225, 213, 148, 74, 101, 84, 215,
    166, 108, 29, 73, 158, 223, 227, 137, 31, 255, 217,
};
static const uint8_t jpeg_420[] = {
    JFIF_LUMA, CHROMA,
    255, 192, 0, 17, 8, 0, 12, 0, 20, 3, 1, 34, 0, 2, 17, 1, 3, 17, 1, 255, 196, 0, 23, 0, 0, 3,
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 8, 7, 255, 196, 0, 31, 16, 0, 1, 2, 6, 3, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 35, 4, 6, 7, 34, 50, 161, 1, 2, 19, 255, 196, 0, 22, 1,
    1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 5, 6, 255, 196, 0, 31, 17, 0, 0, 5, 4, 3,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4, 6, 49, 2, 3, 7, 34, 18, 19, 33, 255, 218, 0, 12,
    3, 1, 0, 2, 17, 3, 17, 0, 63, 0, 195, 81, 104, 246, 44, 104, 126, 69, 163, 216, 177, 162,
    129, 69, 150, 19, 237, 100, 126, 69, 150, 19, 237, 100, 162, 238, 202, 107, 246, 145, 131,
    98, 61, 149, 105, 34, 116, 132, 163, 204, 112, 198, 128, 175, 225, 37, 132, 255, 0, 14, 172,
    128, 106, 187, 148, 215, 243, 63, 12, 48, 108, 61, 149, 117, 83, 48, 63, 255, 217,
};
static const uint8_t jpeg_progressive[] = {
    JFIF_LUMA, CHROMA,
    255, 194, 0, 17, 8, 0, 12, 0, 20, 3, 1, 17, 0, 2, 17, 1, 3, 17, 1, 255, 196, 0, 21, 0, 1, 1,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 6, 255, 196, 0, 23, 1, 1, 1, 1, 1, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 3, 8, 255, 218, 0, 12, 3, 1, 0, 2, 16, 3, 16, 0, 0, 1, 134,
    170, 159, 124, 85, 21, 162, 78, 233, 177, 227, 183, 196, 209, 90, 36, 239, 255, 196, 0, 26,
    16, 0, 2, 3, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 2, 4, 5, 17, 33, 255, 218, 0, 8,
    1, 1, 0, 1, 5, 2, 78, 56, 156, 114, 56, 254, 38, 178, 196, 214, 89, 26, 203, 231, 255, 196,
    0, 28, 17, 0, 2, 2, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 2, 4, 5, 97, 18, 34, 49,
    255, 218, 0, 8, 1, 3, 1, 1, 63, 1, 161, 145, 217, 67, 35, 177, 57, 30, 158, 148, 31, 50,
    131, 230, 37, 243, 224, 127, 255, 196, 0, 28, 17, 0, 2, 2, 3, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 4, 3, 5, 49, 81, 97, 18, 34, 255, 218, 0, 8, 1, 2, 1, 1, 63, 1, 110, 235, 163, 119,
    93, 36, 186, 250, 200, 219, 82, 236, 109, 185, 118, 72, 212, 190, 178, 127, 255, 196, 0, 21,
    16, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 49, 255, 218, 0, 8, 1, 1, 0, 6, 63,
    2, 136, 136, 136, 255, 196, 0, 24, 16, 1, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    16, 33, 49, 17, 255, 218, 0, 8, 1, 1, 0, 1, 63, 33, 201, 202, 55, 89, 172, 243, 95, 255,
    218, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 16, 100, 91, 63, 255, 196, 0, 23, 17, 1, 1, 1, 1, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 33, 49, 17, 255, 218, 0, 8, 1, 3, 1, 1, 63, 16, 192,
    192, 128, 134, 161, 174, 21, 127, 255, 196, 0, 23, 17, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 33, 49, 17, 255, 218, 0, 8, 1, 2, 1, 1, 63, 16, 220, 220, 184, 184, 176, 238,
    31, 255, 196, 0, 24, 16, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 241, 32, 33,
    193, 255, 218, 0, 8, 1, 1, 0, 1, 63, 16, 74, 37, 43, 230, 8, 70, 159, 255, 217,
};
static const uint8_t jpeg_grey[] = {
    JFIF_LUMA,
    255, 192, 0, 11, 8, 0, 12, 0, 20, 1, 1, 17, 0, 255, 196, 0, 21, 0, 1, 1, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 255, 196, 0, 31, 16, 0, 1, 2, 6, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 5, 0, 35, 4, 6, 7, 34, 50, 161, 1, 2, 19, 255, 218, 0, 8, 1, 1, 0, 0, 63, 0, 134, 133,
    163, 216, 177, 164, 248, 45, 30, 197, 141, 38, 144, 148, 121, 142, 24, 210, 166, 133, 150,
    7, 218, 202, 124, 22, 88, 31, 107, 41, 164, 36, 176, 63, 195, 171, 43, 255, 217,
};
static const uint8_t jpeg_cmyk[] = {
    255, 216, 255, 238, 0, 14, 65, 100, 111, 98, 101, 0, 100, 0, 0, 0, 0, 0, 255, 219, 0, 67, 0, 2,
    1, 1, 1, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2, 2, 4, 3, 2, 2, 2, 2, 5, 4, 4, 3, 4, 6, 5, 6, 6, 6, 5, 6,
    6, 6, 7, 9, 8, 6, 7, 9, 7, 6, 6, 8, 11, 8, 9, 10, 10, 10, 10, 10, 6, 8, 11, 12, 11, 10, 12, 9,
    10, 10, 10, 255, 192, 0, 20, 8, 0, 12, 0, 20, 4, 67, 17, 0, 77, 17, 0, 89, 17, 0, 75, 17, 0,
    255, 196, 0, 24, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 8, 10, 7, 255, 196, 0,
    45, 16, 0, 1, 1, 3, 7, 13, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 8, 37, 6, 65, 68, 81, 130,
    161, 209, 3, 4, 21, 24, 25, 35, 51, 54, 66, 86, 102, 163, 240, 162, 255, 218, 0, 14, 4, 67, 0,
    77, 0, 89, 0, 75, 0, 0, 63, 0, 153, 238, 73, 68, 178, 99, 253, 146, 94, 51, 233, 40, 226, 218,
    246, 220, 104, 157, 125, 101, 252, 44, 3, 146, 81, 44, 141, 146, 94, 51, 233, 49, 250, 218, 246,
    220, 104, 157, 125, 96, 168, 137, 63, 36, 230, 191, 76, 193, 178, 75, 198, 125, 38, 93, 149,
    143, 109, 27, 202, 196, 255, 0, 96, 228, 237, 201, 40, 150, 78, 135, 53, 109, 73, 187, 126, 246,
    96, 122, 162, 218, 164, 202, 221, 244, 66, 185, 155, 136, 44, 3, 146, 81, 44, 141, 91, 82, 110,
    223, 189, 152, 24, 253, 109, 82, 101, 110, 250, 33, 92, 205, 196, 21, 17, 39, 228, 156, 215,
    233, 152, 53, 109, 73, 187, 126, 246, 96, 101, 217, 88, 164, 202, 221, 55, 149, 136, 92, 220,
    65, 255, 217,
};
static const uint8_t jpeg_411[] = {
    255, 216, 255, 224, 0, 16, 74, 70, 73, 70, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 255, 219, 0, 67,
    0, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2, 2, 4, 3, 2, 2, 2, 2, 5, 4, 4, 3, 4, 6, 5, 6,
    6, 6, 5, 6, 6, 6, 7, 9, 8, 6, 7, 9, 7, 6, 6, 8, 11, 8, 9, 10, 10, 10, 10, 10, 6, 8, 11,
    12, 11, 10, 12, 9, 10, 10, 10, 255, 219, 0, 67, 1, 2, 2, 2, 2, 2, 2, 5, 3, 3, 5, 10, 7, 6,
    7, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
    10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
    10, 10, 10, 10, 10, 10, 255, 192, 0, 17, 8, 0, 12, 0, 20, 3, 1, 65, 0, 2, 17, 1, 3, 17, 1,
    255, 196, 0, 22, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 8, 255, 196, 0,
    34, 16, 0, 0, 3, 8, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6, 2, 5, 7, 8, 37, 161, 162,
    209, 17, 20, 50, 21, 255, 196, 0, 22, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    8, 7, 9, 255, 196, 0, 33, 17, 0, 0, 4, 7, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7, 65,
    2, 5, 8, 22, 34, 35, 38, 6, 49, 240, 255, 218, 0, 12, 3, 1, 0, 2, 17, 3, 17, 0, 63, 0,
    202, 136, 169, 62, 241, 75, 192, 46, 162, 164, 251, 197, 47, 0, 156, 233, 147, 226, 233,
    51, 75, 192, 66, 132, 189, 173, 93, 65, 236, 115, 112, 154, 166, 21, 23, 139, 44, 218, 16,
    230, 138, 134, 73, 14, 88, 167, 92, 180, 23, 81, 112, 201, 32, 70, 193, 124, 235, 150,
    130, 123, 166, 24, 164, 58, 44, 211, 174, 90, 16, 204, 69, 239, 202, 231, 87, 65, 236,
    115, 251, 216, 25, 211, 20, 238, 99, 101, 150, 77, 8, 255, 217,
};
static const uint8_t png_rgba[] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 4, 0, 0, 0, 3, 8, 6, 0,
    0, 0, 180, 244, 174, 198, 0, 0, 0, 30, 73, 68, 65, 84, 120, 218, 99, 228, 226, 250, 239, 203,
    195, 240, 139, 1, 134, 89, 24, 68, 190, 49, 48, 48, 252, 130, 99, 12, 1, 0, 66, 10, 12, 108,
    211, 54, 240, 175, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
};
static const uint8_t png_palette[] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 4, 0, 0, 0, 3, 4, 3, 0,
    0, 0, 70, 218, 179, 245, 0, 0, 0, 48, 80, 76, 84, 69, 46, 50, 217, 34, 50, 223, 22, 50, 229, 10,
    50, 235, 46, 30, 227, 34, 30, 233, 22, 30, 239, 10, 30, 245, 46, 10, 237, 34, 10, 243, 22, 10,
    249, 10, 10, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 121, 27, 48, 25, 0, 0, 0, 17, 73, 68, 65,
    84, 120, 218, 99, 216, 53, 131, 161, 44, 132, 193, 72, 0, 0, 14, 19, 2, 95, 242, 244, 217, 162,
    0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
};
static const uint8_t png_grey[] = {
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 4, 0, 0, 0, 3, 8, 0, 0,
    0, 0, 145, 159, 241, 26, 0, 0, 0, 23, 73, 68, 65, 84, 120, 218, 99, 84, 99, 102, 102, 102, 225,
    102, 98, 102, 102, 225, 98, 102, 102, 6, 0, 3, 174, 0, 95, 29, 208, 155, 229, 0, 0, 0, 0, 73,
    69, 78, 68, 174, 66, 96, 130,
};

static const uint8_t resized0[] = {
    0, 50, 100, 3, 53, 103, 9, 59, 109, 22, 72, 122, 41, 91, 141, 63, 113, 163, 94, 144, 194, 129,
    179, 159, 169, 219, 37, 217, 127, 61, 252, 46, 96, 4, 54, 104, 12, 62, 112, 25, 75, 125, 44, 94,
    144, 70, 120, 139, 98, 148, 113, 136, 132, 151, 154, 142, 146, 147, 189, 84, 193, 150, 76, 233,
    112, 77, 12, 62, 112, 27, 77, 127, 51, 101, 151, 82, 132, 182, 117, 167, 135, 157, 207, 30, 206,
    111, 78, 197, 81, 123, 109, 138, 162, 154, 188, 101, 201, 223, 45, 30, 80, 130, 54, 104, 154,
    88, 138, 178, 130, 180, 147, 135, 185, 111, 114, 164, 72, 174, 133, 59, 167, 114, 81, 73, 110,
    150, 126, 176, 86, 181, 231, 25, 52, 102, 152, 83, 133, 183, 129, 179, 205, 181, 231, 95, 146,
    196, 83, 45, 95, 145, 116, 166, 53, 120, 170, 34, 37, 87, 114, 101, 151, 61, 164, 214, 8, 88,
    138, 188, 127, 112, 162, 171, 91, 131, 144, 155, 122, 133, 183, 108, 133, 183, 91, 124, 174,
    100, 127, 138, 105, 145, 65, 105, 155, 140, 50, 161, 211, 5, 127, 149, 199, 161, 92, 142, 192,
    32, 82, 122, 89, 139, 130, 162, 128, 195, 245, 67, 124, 174, 142, 128, 108, 158, 230, 47, 97,
    199, 133, 43, 161, 211, 5, 178, 57, 107, 155, 73, 123, 132, 89, 139, 163, 66, 116, 169, 111,
    129, 155, 205, 170, 95, 145, 164, 110, 90, 140, 222, 39, 89, 203, 137, 47, 173, 223, 17, 208, 2,
    52, 151, 62, 112, 96, 123, 173, 188, 52, 102, 193, 80, 130, 131, 181, 231, 78, 128, 178, 99, 79,
    129, 218, 35, 85, 205, 139, 49, 180, 230, 24,
};
static const uint8_t resized1[] = {
    52, 101, 145, 148, 138, 144, 149, 117, 171, 128, 131, 102, 87, 121, 122, 59, 118, 155, 116, 126,
};
static const uint8_t resized2[] = {
    68, 112, 134, 136, 144, 107, 140, 151, 105, 146, 145, 122, 134, 124, 115, 100, 75, 115, 145,
    108, 137, 137, 131, 119, 150, 124, 110, 141, 110, 142, 157, 159, 111, 135, 99, 128, 130, 121,
    171, 92, 118, 162, 125, 115, 134, 124, 115, 135, 124, 131, 146, 139, 114, 135, 82, 125, 155,
    138, 135, 135, 115, 138, 127, 116, 148, 118, 126, 125, 133, 141, 152, 118, 122, 133, 137, 153,
    104, 139, 129, 94, 125, 123, 143, 163, 99, 120, 130, 90, 130, 169,
};
static const uint8_t resized3[] = {
    14, 94, 175, 62, 167, 135, 115, 107, 101, 153, 153, 153, 157, 139, 171, 154, 114, 214, 149, 61,
    48, 96, 83, 144,
};
static const uint8_t resized4[] = {
    0, 7, 28, 63, 112, 3, 15, 42, 83, 138, 9, 36, 77, 132, 202, 17, 59, 115, 155, 238, 36, 91, 161,
    97, 195, 54, 125, 199, 51, 153, 85, 169, 140, 124, 123, 115, 213, 80, 197, 92, 155, 160, 140,
    173, 72, 198, 98, 210, 139, 53, 160, 134, 201, 115, 43, 96, 203, 166, 94, 36, 69, 231, 151, 85,
    33,
};
static const uint8_t resized5[] = {
    136, 137, 137, 131, 170, 97, 136, 122, 88, 120, 151, 101, 160, 87, 135, 119, 142, 165, 178, 81,
    94, 166, 136, 117, 137, 137, 187, 73, 123, 173, 94, 92, 142, 123, 102, 128, 81, 129, 178, 102,
    143, 176, 125, 166, 148, 106, 156, 131,
};
static const uint8_t resized6[] = {
    56, 123, 184, 125, 121, 157, 117, 144, 112, 103, 112, 163, 165, 138, 135, 198, 126, 88, 143,
    176, 88, 194, 166, 128, 168, 137, 64, 196, 207, 213, 163, 95, 53, 44, 62, 101, 101, 76, 79, 112,
    167, 59,
};

static const struct {
    int h, w, c, oh, ow;
    double x, y, bw, bh;
    const uint8_t *want;
} resize_cases[] = {
    { 5, 7, 3, 9, 11, 0, 0, 7, 5, resized0 },
    { 11, 9, 1, 4, 5, 0, 0, 9, 11, resized1 },
    { 13, 17, 3, 5, 6, 0, 0, 17, 13, resized2 },
    { 8, 8, 1, 8, 3, 0, 0, 8, 8, resized3 },
    { 6, 5, 1, 13, 5, 0, 0, 5, 6, resized4 },
    { 10, 12, 3, 4, 4, 1, 2, 7, 7, resized5 },
    { 9, 10, 1, 7, 6, 0.5, 1.25, 8.75, 6.75, resized6 },
};

/* ---- helpers --------------------------------------------------------------------------------- */

static bool decode(const void *p, size_t n, int want_c, data_image *im, err *e) {
    *e = (err){ 0 };
    return image_decode(p, n, "picture", want_c, im, e);
}

static bool refused(const void *p, size_t n, const char *word) {
    data_image im;
    err e;
    bool ok = decode(p, n, 0, &im, &e);
    if (ok) image_free(&im);
    if (ok || e.code != ERR_DATA || !strstr(e.msg, word) || strncmp(e.msg, "picture", 7))
        fprintf(stderr, "wanted a refusal with \"%s\", got %s\n", word, ok ? "an image" : e.msg);
    return !ok && e.code == ERR_DATA && strstr(e.msg, word) && !strncmp(e.msg, "picture", 7);
}

/* The largest difference from the colour ramps. */
static int off_ramp(const data_image *im) {
    int worst = 0;
    for (int y = 0; y < im->h; y++)
        for (int x = 0; x < im->w; x++) {
            const int want[3] = { 12 * x + 10, 20 * y + 10, 255 - 6 * x - 10 * y };
            for (int c = 0; c < 3; c++) {
                int d = abs(im->x[(y * im->w + x) * 3 + c] - want[c]);
                if (d > worst) worst = d;
            }
        }
    return worst;
}

static void check_ramp(const uint8_t *p, size_t n, int tolerance) {
    data_image im = { 0 };
    err e;
    CHECK_OK(decode(p, n, 0, &im, &e), e);
    CHECK(im.h == 12 && im.w == 20 && im.c == 3);
    if (im.x && im.c == 3) CHECK(off_ramp(&im) <= tolerance);
    image_free(&im);
}

/* A copy of the colour JPEG with `extra` put in after the start of image. */
static uint8_t *with_segment(const uint8_t *extra, size_t n, size_t *size) {
    uint8_t *p = malloc(sizeof jpeg_colour + n);
    memcpy(p, jpeg_colour, 2);
    memcpy(p + 2, extra, n);
    memcpy(p + 2 + n, jpeg_colour + 2, sizeof jpeg_colour - 2);
    *size = sizeof jpeg_colour + n;
    return p;
}

/* Where the payload of the first segment of this marker lies. */
static size_t find_segment(const uint8_t *p, size_t n, int marker) {
    for (size_t at = 2; at + 4 < n; at += 2 + (size_t)(p[at + 2] << 8 | p[at + 3]))
        if (p[at + 1] == marker) return at + 4;
    return 0;
}

/* ---- JPEG ------------------------------------------------------------------------------------ */

static void jpegs_of_every_usual_kind_decode(void) {
    check_ramp(jpeg_colour, sizeof jpeg_colour, 6);
    check_ramp(jpeg_progressive, sizeof jpeg_progressive, 6);
    check_ramp(jpeg_420, sizeof jpeg_420, 32);
    check_ramp(jpeg_411, sizeof jpeg_411, 32);
}

static void a_grey_jpeg_stays_grey_unless_colour_is_wanted(void) {
    data_image im, rgb;
    err e;
    CHECK_OK(decode(jpeg_grey, sizeof jpeg_grey, 0, &im, &e), e);
    CHECK(im.c == 1 && im.h == 12 && im.w == 20);
    CHECK(abs(im.x[0] - 38) <= 3);                       /* luma of (10, 10, 255) */
    CHECK_OK(decode(jpeg_grey, sizeof jpeg_grey, 3, &rgb, &e), e);
    CHECK(rgb.c == 3 && rgb.x[0] == im.x[0] && rgb.x[1] == im.x[0] && rgb.x[2] == im.x[0]);
    image_free(&im);
    image_free(&rgb);
    CHECK_OK(decode(jpeg_colour, sizeof jpeg_colour, 1, &im, &e), e);
    CHECK(im.c == 1 && abs(im.x[0] - 38) <= 3);
    image_free(&im);
}

static void a_cmyk_jpeg_with_adobes_mark_becomes_rgb(void) {
    check_ramp(jpeg_cmyk, sizeof jpeg_cmyk, 8);
}

static void a_cmyk_jpeg_without_the_mark_is_refused_by_name(void) {
    uint8_t p[sizeof jpeg_cmyk];
    memcpy(p, jpeg_cmyk, sizeof p);
    size_t at = find_segment(p, sizeof p, 0xEE);
    CHECK(at && !memcmp(p + at, "Adobe", 5));
    p[at] = 'X';
    CHECK(refused(p, sizeof p, "4 components"));
}

static void huffman_tables_above_256_codes_are_refused(void) {
    uint8_t table[2 + 2 + 17 + 512] = { 0xFF, 0xC4, (2 + 17 + 512) >> 8, (2 + 17 + 512) & 255 };
    table[4 + 15] = 255, table[4 + 16] = 255;
    size_t n;
    uint8_t *p = with_segment(table, sizeof table, &n);
    CHECK(refused(p, n, "Huffman table has more than 256"));
    free(p);
    uint8_t crowded[2 + 2 + 17 + 3] = {
        0xFF, 0xC4, 0, 2 + 17 + 3, 0, 3
    }; /* three codes of one bit */
    p = with_segment(crowded, sizeof crowded, &n);
    CHECK(refused(p, n, "Huffman table has more codes"));
    free(p);
}

static void a_jpeg_without_its_end_is_refused(void) {
    CHECK(refused(jpeg_colour, sizeof jpeg_colour - 2, "cut off"));
    CHECK(refused(jpeg_progressive, sizeof jpeg_progressive - 2, "cut off"));
}

/* An end of image in the middle of the scan: the decoder alone would paint the rest grey. */
static void a_jpeg_whose_scan_ends_early_is_refused(void) {
    static const struct { const uint8_t *p; size_t size; } whole[] = {
        { jpeg_colour, sizeof jpeg_colour }, { jpeg_420, sizeof jpeg_420 }, { jpeg_411, sizeof jpeg_411 },
    };
    for (int i = 0; i < 3; i++) {
        uint8_t p[1024];
        memcpy(p, whole[i].p, whole[i].size);
        size_t scan = find_segment(p, whole[i].size, 0xDA) + 10;
        for (size_t end = scan; end < whole[i].size - 3; end++) {
            memcpy(p, whole[i].p, whole[i].size);
            if (p[end - 1] == 0xFF) continue;
            p[end] = 0xFF, p[end + 1] = 0xD9;
            CHECK(refused(p, end + 2, "cut off inside its scan"));
        }
    }
}

static void a_jpeg_of_impossible_size_is_refused(void) {
    uint8_t p[sizeof jpeg_colour];
    memcpy(p, jpeg_colour, sizeof p);
    size_t at = find_segment(p, sizeof p, 0xC0);
    CHECK(at);
    p[at + 3] = 0x40, p[at + 4] = 1;                     /* 16385 wide */
    CHECK(refused(p, sizeof p, "16385×12"));
    p[at + 3] = p[at + 4] = 0;
    CHECK(refused(p, sizeof p, "0×12"));
    p[at + 1] = p[at + 3] = 0x40, p[at + 2] = 0;         /* 16384 × 16384 */
    CHECK(refused(p, sizeof p, "2^27"));
    p[at] = 12;
    CHECK(refused(p, sizeof p, "12 bits"));
}

static void a_jpeg_that_lacks_its_tables_or_components_is_refused(void) {
    uint8_t p[sizeof jpeg_colour];
    memcpy(p, jpeg_colour, sizeof p);
    size_t at = find_segment(p, sizeof p, 0xC4);
    p[at - 3] = 0xFE;                                    /* a table turned into a comment */
    CHECK(refused(p, sizeof p, "lacks its Huffman table"));
    memcpy(p, jpeg_colour, sizeof p);
    at = find_segment(p, sizeof p, 0xDB);
    p[at - 3] = 0xFE;
    CHECK(refused(p, sizeof p, "lacks its quantisation table"));
    memcpy(p, jpeg_colour, sizeof p);
    at = find_segment(p, sizeof p, 0xDA);
    p[at + 7] = 1;                                       /* a sequential scan has all coefficients */
    CHECK(refused(p, sizeof p, "scan header is malformed"));
    memcpy(p, jpeg_colour, sizeof p);
    at = find_segment(p, sizeof p, 0xC0);
    p[at - 3] = 0xC9;
    CHECK(refused(p, sizeof p, "arithmetic"));
    uint8_t empty[] = { 0xFF, 0xD8, 0xFF, 0xD9 };
    CHECK(refused(empty, sizeof empty, "no image"));
    CHECK(refused("", 0, "neither"));
    CHECK(refused("GIF89a", 6, "neither JPEG nor PNG"));
}

static void exif_orientation_turns_the_image(void) {
    for (int big = 0; big < 2; big++)
        for (int o = 1; o <= 8; o++) {
            uint8_t little_endian[] = { 0xFF, 0xE1,       0,    34, 'E', 'x', 'i', 'f', 0,
                                        0,    'I',        'I',  42, 0,   8,   0,   0,   0,
                                        1,    0,          0x12, 1,  3,   0,   1,   0,   0,
                                        0,    (uint8_t)o, 0,    0,  0,   0,   0,   0,   0 };
            uint8_t big_endian[] = { 0xFF, 0xE1, 0,          34,   'E', 'x', 'i', 'f', 0,
                                     0,    'M',  'M',        0,    42,  0,   0,   0,   8,
                                     0,    1,    1,          0x12, 0,   3,   0,   0,   0,
                                     1,    0,    (uint8_t)o, 0,    0,   0,   0,   0,   0 };
            size_t n;
            uint8_t *p = with_segment(big ? big_endian : little_endian, sizeof big_endian, &n);
            data_image im = { 0 }, flat = { 0 };
            err e;
            CHECK_OK(decode(p, n, 0, &im, &e), e);
            CHECK_OK(decode(jpeg_colour, sizeof jpeg_colour, 0, &flat, &e), e);
            CHECK(im.h == (o < 5 ? 12 : 20) && im.w == (o < 5 ? 20 : 12));
            /* stored pixel (row 0, column 0) appears at this corner: EXIF 2.3, tag 0x0112 */
            static const struct {
                bool bottom, right;
            } corner[9] = { [2] = { 0, 1 }, [3] = { 1, 1 }, [4] = { 1, 0 }, [5] = { 0, 0 },
                            [6] = { 0, 1 }, [7] = { 1, 1 }, [8] = { 1, 0 } };
            const uint8_t *at = im.x + 3 * ((corner[o].bottom ? im.h - 1 : 0) * im.w +
                                            (corner[o].right ? im.w - 1 : 0));
            CHECK(!memcmp(at, flat.x, 3));
            /* and the end of stored row 0 at this one */
            static const struct {
                bool bottom, right;
            } end[9] = { [1] = { 0, 1 }, [2] = { 0, 0 }, [3] = { 1, 0 }, [4] = { 1, 1 },
                         [5] = { 1, 0 }, [6] = { 1, 1 }, [7] = { 0, 1 }, [8] = { 0, 0 } };
            at = im.x + 3 * ((end[o].bottom ? im.h - 1 : 0) * im.w + (end[o].right ? im.w - 1 : 0));
            CHECK(!memcmp(at, flat.x + 3 * 19, 3));
            image_free(&im);
            image_free(&flat);
            free(p);
        }
}

/* ---- PNG ------------------------------------------------------------------------------------- */

static void pngs_decode_exactly_and_alpha_is_dropped(void) {
    data_image im;
    err e;
    CHECK_OK(decode(png_rgba, sizeof png_rgba, 0, &im, &e), e);
    CHECK(im.h == 3 && im.w == 4 && im.c == 3 && off_ramp(&im) == 0);
    image_free(&im);
    CHECK_OK(decode(png_palette, sizeof png_palette, 0, &im, &e), e);
    CHECK(im.h == 3 && im.w == 4 && im.c == 3 && off_ramp(&im) == 0);
    image_free(&im);
    CHECK_OK(decode(png_grey, sizeof png_grey, 0, &im, &e), e);
    CHECK(im.h == 3 && im.w == 4 && im.c == 1 && im.x[0] == 38);
    image_free(&im);
}

static void a_damaged_png_is_refused(void) {
    uint8_t p[sizeof png_rgba];
    int good = 0;
    for (size_t at = 0; at < sizeof p; at++) {            /* every byte is covered by a check sum */
        memcpy(p, png_rgba, sizeof p);
        p[at] ^= 0x55;
        data_image im;
        err e;
        if (decode(p, sizeof p, 0, &im, &e)) good++, image_free(&im);
        else CHECK(e.code == ERR_DATA);
    }
    CHECK(good == 0);
    for (size_t n = 0; n < sizeof p; n++) {
        data_image im;
        err e;
        CHECK(!decode(png_rgba, n, 0, &im, &e));
    }
}

static void png_written_is_png_read(void) {
    make_dir();
    const char *path = in_dir("a.png");
    for (int c = 1; c <= 3; c += 2) {
        uint8_t x[5 * 7 * 3];
        for (int i = 0; i < 105; i++) x[i] = (uint8_t)(i * 37);
        data_image im = { 5, 7, c, x }, back;
        err e = { 0 };
        buf b = { 0 };
        CHECK_OK(image_write_png(path, &im, &e), e);
        CHECK_OK(file_read(path, &b, &e), e);
        CHECK_OK(decode(b.data, b.len, 0, &back, &e), e);
        CHECK(back.h == 5 && back.w == 7 && back.c == c && !memcmp(back.x, x, (size_t)(35 * c)));
        image_free(&back);
        buf_free(&b);
    }
    err e = { 0 };
    data_image im = { 1, 1, 1, (uint8_t[]){ 0 } };
    CHECK(!image_write_png("/nowhere/at/all.png", &im, &e) && e.code == ERR_IO);
    remove_dir();
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* Whatever the bytes: an image or a sentence with ERR_DATA, and no stray access. */
static void try_bytes(const uint8_t *p, size_t n) {
    data_image im;
    err e;
    uint8_t *exact = malloc(n ? n : 1);                   /* its own block: a read beyond is seen */
    memcpy(exact, p, n);
    if (decode(exact, n, 0, &im, &e)) {
        unsigned sum = 0;
        for (size_t i = 0; i < (size_t)im.h * (size_t)im.w * (size_t)im.c; i++) sum += im.x[i];
        CHECK(im.h > 0 && im.w > 0 && sum + 1 > 0);
        image_free(&im);
    } else {
        CHECK(e.code == ERR_DATA || e.code == ERR_NOMEM);
        CHECK(e.msg[0]);
    }
    free(exact);
}

static void fuzz(const uint8_t *p, size_t n, int rounds, uint64_t seed) {
    uint8_t *q = malloc(n);
    for (int i = 0; i < rounds; i++) {
        rng r = rng_at(seed, RNG_TEST, 0, (uint64_t)i);
        memcpy(q, p, n);
        for (uint32_t k = 1 + rng_below(&r, 6); k; k--)
            q[rng_below(&r, (uint32_t)n)] = (uint8_t)rng_u32(&r);
        if (rng_below(&r, 4) == 0) {                      /* a run of the file doubled or lost */
            size_t from = rng_below(&r, (uint32_t)n), len = rng_below(&r, (uint32_t)(n - from)) / 2;
            memmove(q + from, q + from + len, n - from - len);
        }
        size_t keep = n;
        if (rng_below(&r, 3) == 0) {                      /* cut, sometimes with an end put back */
            keep = rng_below(&r, (uint32_t)n);
            if (keep > 2 && rng_below(&r, 2)) q[keep - 2] = 0xFF, q[keep - 1] = 0xD9;
        }
        try_bytes(q, keep);
    }
    free(q);
}

static void damaged_little_files_never_crash(void) {
    const struct { const uint8_t *p; size_t n; } file[] = {
        { jpeg_colour, sizeof jpeg_colour }, { jpeg_420, sizeof jpeg_420 },
        { jpeg_progressive, sizeof jpeg_progressive }, { jpeg_grey, sizeof jpeg_grey },
        { jpeg_cmyk, sizeof jpeg_cmyk }, { jpeg_411, sizeof jpeg_411 }, { png_rgba, sizeof png_rgba },
    };
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        for (size_t n = 0; n < file[i].n; n++) try_bytes(file[i].p, n);
        fuzz(file[i].p, file[i].n, 4000, i);
    }
}

static void damaged_photographs_never_crash(void) {
    DIR *d = opendir("../shared/data/imagenette-224/val/n01440764");
    if (!d) SKIP("no photographs in ../shared/data");
    int files = 0;
    for (struct dirent *f; files < 12 && (f = readdir(d));) {
        if (f->d_name[0] == '.') continue;
        char path[512];
        snprintf(path, sizeof path, "../shared/data/imagenette-224/val/n01440764/%s", f->d_name);
        buf b = { 0 };
        err e = { 0 };
        data_image im = { 0 };
        CHECK_OK(file_read(path, &b, &e), e);
        CHECK_OK(decode(b.data, b.len, 0, &im, &e), e);
        CHECK(im.h == 224 && im.w == 224);
        image_free(&im);
        fuzz((const uint8_t *)b.data, b.len, 40, (uint64_t)(100 + files++));
        buf_free(&b);
    }
    closedir(d);
    CHECK(files > 0);
}

/* ---- resize ---------------------------------------------------------------------------------- */

static void resize_equals_pil_bit_for_bit(void) {
    for (size_t i = 0; i < sizeof resize_cases / sizeof *resize_cases; i++) {
        int h = resize_cases[i].h, w = resize_cases[i].w, c = resize_cases[i].c;
        uint8_t x[13 * 17 * 3];
        for (int y = 0; y < h; y++)
            for (int k = 0; k < w; k++)
                for (int j = 0; j < c; j++)
                    x[(y * w + k) * c + j] = (uint8_t)(7 * k * k + 13 * y * y + 50 * j +
                                                       31 * k * y);
        data_image im = { h, w, c, x }, out = { 0 };
        err e = { 0 };
        CHECK_OK(image_resize(&im, resize_cases[i].x, resize_cases[i].y, resize_cases[i].bw,
                              resize_cases[i].bh, resize_cases[i].oh, resize_cases[i].ow, &out, &e),
                 e);
        CHECK(out.h == resize_cases[i].oh && out.w == resize_cases[i].ow && out.c == c);
        if (out.x) CHECK(!memcmp(out.x, resize_cases[i].want, (size_t)(out.h * out.w * c)));
        image_free(&out);
    }
}

/* One pass along rows of n_out from n_in, PIL's way, one output value at a time: value o of the line
 * at x with a stride. Weights in 22 bits. */
static uint8_t naive_value(const uint8_t *x, int stride, int n_in, double from, double size, int n_out,
                           int o) {
    double scale = (double)((float)(from + size) - (float)from) / n_out;
    double support = scale < 1 ? 1 : scale, centre = (double)(float)from + (o + .5) * scale, w[64], sum = 0;
    int first = (int)(centre - support + .5), last = (int)(centre + support + .5);
    if (first < 0) first = 0;
    if (last > n_in) last = n_in;
    for (int i = first; i < last; i++) {
        w[i - first] = fmax(0, 1 - fabs((i - centre + .5) * (1 / support)));
        sum += w[i - first];
    }
    int64_t total = 1 << 21;
    for (int i = first; i < last; i++)
        total += x[i * stride] * (int64_t)(.5 + w[i - first] / sum * (1 << 22));
    total >>= 22;
    return (uint8_t)(total > 255 ? 255 : total);
}

static void resize_equals_a_naive_sum_for_many_sizes(void) {
    enum { MOST = 60 };
    static uint8_t wide[MOST * MOST * 3];
    rng r = rng_at(1, RNG_TEST, 0, 0);
    for (int trial = 0; trial < 300; trial++) {
        int c = trial % 3 ? 3 : 1, h = 1 + (int)rng_below(&r, MOST), w = 1 + (int)rng_below(&r, MOST);
        int oh = 1 + (int)rng_below(&r, MOST), ow = 1 + (int)rng_below(&r, MOST);
        int bx = (int)rng_below(&r, (uint32_t)w), by = (int)rng_below(&r, (uint32_t)h);
        int bw = 1 + (int)rng_below(&r, (uint32_t)(w - bx)), bh = 1 + (int)rng_below(&r, (uint32_t)(h - by));
        if (ow == w || oh == h) continue;                /* a pass that is left out */
        uint8_t *x = malloc((size_t)(h * w * c));        /* not a byte more may be read */
        for (int i = 0; i < h * w * c; i++) x[i] = trial % 7 ? (uint8_t)rng_u32(&r) : 255;
        for (int y = 0; y < h; y++)
            for (int i = 0; i < ow * c; i++)
                wide[y * ow * c + i] = naive_value(x + y * w * c + i % c, c, w, bx, bw, ow, i / c);
        data_image im = { h, w, c, x }, out;
        err e = { 0 };
        CHECK_OK(image_resize(&im, bx, by, bw, bh, oh, ow, &out, &e), e);
        bool same = out.h == oh && out.w == ow;
        for (int y = 0; same && y < oh; y++)
            for (int i = 0; same && i < ow * c; i++)
                same = out.x[y * ow * c + i] == naive_value(wide + i, ow * c, h, by, bh, oh, y);
        CHECK(same);
        image_free(&out);
        free(x);
    }
}

static void a_part_of_a_resize_equals_that_part_of_the_whole(void) {
    enum { MOST = 50 };
    static uint8_t x[MOST * MOST * 3];
    rng r = rng_at(2, RNG_TEST, 0, 0);
    for (size_t i = 0; i < sizeof x; i++) x[i] = (uint8_t)rng_u32(&r);
    for (int trial = 0; trial < 200; trial++) {
        int c = trial % 3 ? 3 : 1, h = 1 + (int)rng_below(&r, MOST), w = 1 + (int)rng_below(&r, MOST);
        int oh = trial % 4 ? 1 + (int)rng_below(&r, 90) : h;          /* passes left out, too */
        int ow = trial % 5 ? 1 + (int)rng_below(&r, 90) : w;
        int y0 = (int)rng_below(&r, (uint32_t)oh), x0 = (int)rng_below(&r, (uint32_t)ow);
        image_part part = { y0, x0, 1 + (int)rng_below(&r, (uint32_t)(oh - y0)),
                            1 + (int)rng_below(&r, (uint32_t)(ow - x0)) };
        data_image im = { h, w, c, x }, all, some;
        err e = { 0 };
        CHECK_OK(image_resize(&im, 0, 0, w, h, oh, ow, &all, &e), e);
        CHECK_OK(image_resize_part(&im, &(image_box){ 0, 0, w, h }, oh, ow, &part, &some, &e), e);
        bool same = some.h == part.h && some.w == part.w && some.c == c;
        for (int y = 0; same && y < part.h; y++)
            same = !memcmp(some.x + y * part.w * c, all.x + ((y0 + y) * ow + x0) * c, (size_t)(part.w * c));
        CHECK(same);
        image_free(&all);
        image_free(&some);
    }
}

static void resize_to_the_same_size_copies_and_a_bad_box_is_refused(void) {
    uint8_t x[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    data_image im = { 2, 2, 3, x }, out;
    err e = { 0 };
    CHECK_OK(image_resize(&im, 0, 0, 2, 2, 2, 2, &out, &e), e);
    CHECK(!memcmp(out.x, x, 12));
    image_free(&out);
    CHECK(!image_resize(&im, 1, 0, 2, 2, 2, 2, &out, &e) && e.code == ERR_CONFIG);
    CHECK(!image_resize(&im, 0, 0, (double)NAN, 2, 2, 2, &out, &e));
    CHECK(!image_resize(&im, 0, 0, 2, 2, 0, 2, &out, &e));
}

static void running_out_of_memory_is_said_and_leaks_nothing(void) {
    for (int k = 1; k < 15; k++) {
        uint8_t x[13 * 17 * 3] = { 0 };
        data_image im = { 13, 17, 3, x }, out;
        err e = { 0 };
        mem_fail_at(k);
        bool ok = image_resize(&im, 0, 0, 17, 13, 5, 6, &out, &e);
        mem_fail_at(0);
        CHECK(ok || e.code == ERR_NOMEM);
        CHECK(k < 14 || ok);
        if (ok) image_free(&out);
    }
    for (int k = 1; k <= 2; k++) {
        data_image out;
        err e;
        mem_fail_at(k);
        bool ok = decode(jpeg_colour, sizeof jpeg_colour, 0, &out, &e);
        mem_fail_at(0);
        CHECK(ok == (k == 2) && (ok || e.code == ERR_NOMEM));
        if (ok) image_free(&out);
    }
}

int main(void) {
    RUN(jpegs_of_every_usual_kind_decode);
    RUN(a_grey_jpeg_stays_grey_unless_colour_is_wanted);
    RUN(a_cmyk_jpeg_with_adobes_mark_becomes_rgb);
    RUN(a_cmyk_jpeg_without_the_mark_is_refused_by_name);
    RUN(huffman_tables_above_256_codes_are_refused);
    RUN(a_jpeg_without_its_end_is_refused);
    RUN(a_jpeg_whose_scan_ends_early_is_refused);
    RUN(a_jpeg_of_impossible_size_is_refused);
    RUN(a_jpeg_that_lacks_its_tables_or_components_is_refused);
    RUN(exif_orientation_turns_the_image);
    RUN(pngs_decode_exactly_and_alpha_is_dropped);
    RUN(a_damaged_png_is_refused);
    RUN(png_written_is_png_read);
    RUN(damaged_little_files_never_crash);
    RUN(damaged_photographs_never_crash);
    RUN(resize_equals_pil_bit_for_bit);
    RUN(resize_equals_a_naive_sum_for_many_sizes);
    START(1);                                /* until here core's choice was scalar, now the best */
    RUN(resize_equals_pil_bit_for_bit);
    RUN(resize_equals_a_naive_sum_for_many_sizes);
    RUN(a_part_of_a_resize_equals_that_part_of_the_whole);
    core_stop();
    RUN(resize_to_the_same_size_copies_and_a_bad_box_is_refused);
    RUN(running_out_of_memory_is_said_and_leaks_nothing);
    END();
}
