import pytest

from deformable_detr.data.formats.csv_columns import Columns, columns_of


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", Columns(0, (4, 5, 6, 7), "corners", (3,), (1, 2))),
        # Corners win over width and height, which are then the image's.
        ("image,x1,y1,x2,y2,w,h,label", Columns(0, (1, 2, 3, 4), "corners", (7,), None, unknown=(5, 6))),
        ("image,left,top,width,height,label", Columns(0, (1, 2, 3, 4), "size", (5,))),
        ("image,x,y,w,h,width,height,label", Columns(0, (1, 2, 3, 4), "size or center", (7,), (5, 6))),
        (
            "image,bbox_x,bbox_y,bbox_width,bbox_height,width,height",
            Columns(0, (1, 2, 3, 4), "size or center", (), (5, 6)),
        ),
        ("image,cx,cy,w,h,class", Columns(0, (1, 2, 3, 4), "center", (5,))),
        ("img,x0,y0,x1,y1,class", Columns(0, (1, 2, 3, 4), "corners", (5,))),
        ("img,x1,y1,w,h,class", Columns(0, (1, 2, 3, 4), "size", (5,))),
        ("xmin,xmax,ymin,ymax,Frame ID,path,Label Name", Columns(5, (0, 2, 1, 3), "corners", (6,), unknown=(4,))),
        ("image_id,width,height,bbox,source", Columns(0, (3,), "size or corners", (), (1, 2))),
        ("image,class_id,class_name,bbox_xyxy,is_crowd", Columns(0, (3,), "corners", (2,), crowd=4, unknown=(1,))),
        ("image,class,label,xmin,ymin,xmax,ymax", Columns(0, (3, 4, 5, 6), "corners", (1, 2))),
        ("name,type,xmin,ymin,xmax,ymax,subset", Columns(0, (2, 3, 4, 5), "corners", (1,), split=6)),
        (
            "Filename;Annotation tag;Upper left corner X;Upper left corner Y;Lower right corner X;Lower right corner Y",
            Columns(0, (2, 3, 4, 5), "corners", (1,)),
        ),
    ],
)
def test_columns_by_their_names(header: str, columns: Columns) -> None:
    assert columns_of(header.replace(";", ",").split(",")) == columns


@pytest.mark.parametrize(
    "header",
    [
        "a.png,1,2,3,4,cat",
        "xmin,ymin,xmax,ymax,class",
        "image,class",
        "image,x,y,class",
        "image,xmin,ymin,xmin,ymin,class",
        "image,x1,y1,x2,y2,x3,y3,x4,y4",
        "",
    ],
)
def test_what_names_no_box_of_an_image(header: str) -> None:
    assert columns_of(header.split(",")) is None
