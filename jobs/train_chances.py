"""spark-submit --properties-file FILE jobs/train_chances.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import train_chances

if __name__ == "__main__":
    sys.exit(main(train_chances))
