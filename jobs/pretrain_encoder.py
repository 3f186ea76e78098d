"""spark-submit --properties-file FILE jobs/pretrain_encoder.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import pretrain_encoder

if __name__ == "__main__":
    sys.exit(main(pretrain_encoder))
